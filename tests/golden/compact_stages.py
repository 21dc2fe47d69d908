"""Make the small copies of the goldens of labels, scores and inference that the tests carry.

    python tests/golden/compact_stages.py FOLDER_WITH_THE_FULL_GOLDENS

Left out: weights that a recipe rebuilds, arrays that stand in another file, and of the CAMs and
probabilities in `THINNED` all but every second row and column. Nothing is changed in what is kept.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent
FILES = ("B_multiscale_cam", "C_labels_miou", "E_inference")
LEFT_OUT = ("state_dict.", "ms_im_f32.", "process_batch.prob", "resized.china.1.0",
            "resized.flower.1.0")  # fmt: skip
THINNED = ("voc_china_s1.0.cam", "voc_china_s1.0_0.8_1.2.cam", "prob.single_scale",
           "prob.multi_scale_multimask_p1")  # fmt: skip


def main(source: Path) -> None:
    manifest = json.loads((source / "manifest.json").read_text())["files"]
    facts = {}
    for name in FILES:
        arrays = load_file(source / f"{name}.safetensors")
        entry = manifest[f"{name}.safetensors"]
        facts[name] = {
            k: entry[k] for k in ("cases", "datasets", "config", "windows") if k in entry
        }
        weights = {
            k.removeprefix("state_dict."): v.shape
            for k, v in arrays.items()
            if k.startswith("state_dict.")
        }
        if weights:
            facts[name]["state_dict"] = weights
        kept = {
            k: v[..., ::2, ::2] if k in THINNED else v
            for k, v in arrays.items()
            if not k.startswith(LEFT_OUT) and not _repeats(k, v, arrays)
        }
        np.savez_compressed(HERE / f"{name}.npz", **kept)
    (HERE / "stages.json").write_text(json.dumps(facts, indent=0) + "\n")


def _repeats(key: str, array: np.ndarray, arrays: dict[str, np.ndarray]) -> bool:
    """Whether a CAM of the data set "vocnoise" is that of "voc"."""
    twin = arrays.get(key.replace("vocnoise.", "voc."))
    return key.startswith("vocnoise.") and twin is not None and np.array_equal(twin, array)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
