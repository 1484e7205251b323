"""Published architectures: built with random weights, counted, taken apart, scaled and timed."""
