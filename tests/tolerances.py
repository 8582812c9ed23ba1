"""Named tolerances, absolute, for values in [-1, 1]."""

#: Engines against each other in float32 (about 100 gates of rounding).
FLOAT32 = 1e-5
#: Engines against each other in float64.
FLOAT64 = 1e-9
#: Samplers against diffusers, which keeps its coefficients in float32.
SAMPLER = 1e-5
#: Exported circuits, read back by stock parsers, against the model's layer.
EXPORT = 1e-6
