"""Makes the models of this folder, and the zoo of `tests/spaces`, importable under importlib mode."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "spaces")]
