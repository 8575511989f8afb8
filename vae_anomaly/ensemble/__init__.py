"""Several members as one: how they are trained, averaged and asked."""
