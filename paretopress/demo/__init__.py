"""The embedded demo: scikit-learn's digits and a small residual network that was trained on them."""
