"""Images: from what users hand in to flat rows, and back."""

import numpy as np
import pandas as pd
import pytest

from vae_anomaly.images import flattened


@pytest.mark.parametrize("image_shape", [(2, 3), (2, 3, 4)])
def test_images_become_one_row_each(image_shape):
    images = np.arange(5 * np.prod(image_shape)).reshape(5, *image_shape)
    rows, shape = flattened(images)
    assert shape == image_shape
    np.testing.assert_array_equal(rows, [image.ravel() for image in images])


@pytest.mark.parametrize("X", [[[1, 2]], np.ones((3, 2)), np.ones(3), pd.DataFrame({"a": [1]}), "text"])
def test_anything_but_images_passes_as_it_is(X):
    rows, shape = flattened(X)
    assert rows is X
    assert shape is None
