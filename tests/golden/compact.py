"""Make the small copies of the model goldens that the tests carry.

    python tests/golden/compact.py FOLDER_WITH_THE_FULL_GOLDENS

Left out: weights and inputs that the manifest's recipes rebuild (their names and shapes go into
``shapes.json``), gradients of tensors above 2400 elements, and attention maps that repeat others.
Nothing is changed in what is kept.
"""

import json
import re
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
FILES = {
    "A_a1_voc20_avg": r"state_dict\.|out\..*inter\.|grad\.(?!adaptive)",
    "A_a2_voc20_max": r"state_dict\.",
    "A_a3_coco90_max": r"state_dict\.",
    "A_a5_hd16_odd": r"state_dict\.",
    "A_a6_full_voc20": r"out\..*\.patch_attn$",
    "D_d1_deit_mask": r"state_dict\.",
    "D_d2_deit_multimask": r"out\.sq64\.masks1|out\..*encoder",
    "D_d3_deit_linear": r"out\.sq64\.",
    "D_d5_dinov2_mask": r"state_dict\.",
    "D_d6_eva02_mask": r"state_dict\.",
}
LARGEST_GRADIENT = 2400


def main(source: Path) -> None:
    manifest = json.loads((source / "manifest.json").read_text())["files"]
    shapes = {}
    for name, left_out in FILES.items():
        arrays = load_file(source / f"{name}.safetensors")
        weights = {k: list(v.shape) for k, v in arrays.items() if k.startswith("state_dict.")}
        entry = manifest[f"{name}.safetensors"]
        digest = entry.get("state_dict_digest", {})
        weights |= {f"state_dict.{k}": v["shape"] for k, v in digest.items()}
        shapes[name] = {
            "config": entry["config"],
            "state_dict": {k.removeprefix("state_dict."): v for k, v in weights.items()},
        }
        kept = {
            k: v
            for k, v in arrays.items()
            if not re.match(left_out, k)
            and not (k.startswith("grad.") and v.size > LARGEST_GRADIENT)
        }
        save_file(kept, HERE / f"{name}.safetensors")
    steps = manifest["T_train_steps.safetensors"]["cases"]
    shapes["T_train_steps"] = {k: v for k, v in steps.items() if k != "stage2_inputs"}
    shapes["D_lr_schedules"] = manifest["D_lr_schedules.safetensors"]["cases"]
    (HERE / "shapes.json").write_text(json.dumps(shapes, indent=0) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
