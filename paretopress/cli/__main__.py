"""`python -m paretopress.cli`: the command line without its installed script."""

from paretopress.cli import main

main()
