"""One model's training, epoch by epoch."""
