"""`tcm eval`: what the models are worth, measured on real files beside JPEG, WebP, AVIF and JPEG XL."""
