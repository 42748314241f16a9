"""Statistics of a model's inputs on calibration text: what the data-aware methods are made of."""
