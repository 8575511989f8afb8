"""What users hand in -> the float32 rows that a model sees, and back."""
