"""An estimator as one file of data, and back."""
