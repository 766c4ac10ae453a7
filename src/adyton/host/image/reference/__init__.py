"""Reference values of an image, computed from its files alone: what its measurements will be wherever it is started."""
