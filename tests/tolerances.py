"""Named tolerances, absolute, for values in [-1, 1]."""

#: Engines against each other in float32 (about 100 gates of rounding).
FLOAT32 = 1e-5
#: Engines against each other in float64.
FLOAT64 = 1e-9
#: Samplers against diffusers, which keeps its coefficients in float32.
SAMPLER = 1e-5
#: Converted networks against the published code's output, relative.
PUBLISHED = 2e-4
#: The published schedules are float32: 1 - (a ratio near 1) keeps three digits at the first steps.
PUBLISHED_SCHEDULE = 1e-3
#: Sampled values may be this many standard errors off: seeded, so that a pass stays a pass.
SIGMAS = 5.0
#: Exported circuits, read back by stock parsers, against the model's layer.
EXPORT = 1e-6
#: Losses and gradient norms of runs whose batches are shared by other numbers of processes,
#: relative: the sums round otherwise, and Adam carries that on from step to step.
LOSS_CURVE = 1e-5
