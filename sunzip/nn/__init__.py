"""Networks: float transforms in torch, and exact integer networks in NumPy."""

#: Of the hyperprior: images are padded to a multiple of this; one latent position covers 16×16 pixels.
STRIDE = 16

#: Latents are padded to a multiple of this; one hyper-latent position covers 4×4 latent positions.
HYPER_STRIDE = 4

#: How many standard deviations the hyperprior tells apart, each with a table of its own.
SCALES = 64
