"""What README shows runs as it stands."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.long
@pytest.mark.skipif(not README.exists(), reason="README is not part of an installed package")
def test_the_code_in_readme_runs(tmp_path, monkeypatch):
    from vae_anomaly.likelihoods import LIKELIHOODS

    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 5
    namespace = {"__name__": "readme"}
    try:
        for block in blocks:
            exec(compile(block, str(README), "exec"), namespace)
        fitted = namespace["VAEDetector"](likelihood="logistic", epochs=2).fit(namespace["X"])
        assert fitted.sample(3, random_state=0).shape == (3, 30)
    finally:
        LIKELIHOODS.pop("logistic", None)
