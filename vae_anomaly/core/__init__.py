"""What everything stands on: the door to TensorFlow, parameter objects, rows, formulas, versions."""
