"""``weaktr import``: released checkpoints become native ones that every command works with."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests import published
from tests.models import small
from tests.parity import recipe
from tests.tolerances import assert_golden
from weaktr import cli
from weaktr.data.classes import COCO80, COCO90, VOC
from weaktr.models import checkpoints
from weaktr.models.released.import_checkpoint import Choices, import_checkpoint, read_published
from weaktr.models.released.state_dicts import CLIP, IMAGENET, NORMALIZATIONS
from weaktr.models.released.torch_file import read_torch_file
from weaktr.models.released.variant import read_variant
from weaktr.models.vit import ViT
from weaktr.progress import console

QUICK = ["short_side=64", "window=64", "stride=64", "ratios=[1.0]", "flip=false"]


def said(*arguments):
    """Exit code and everything printed."""
    with console.capture() as capture:
        code = cli.main([str(argument) for argument in arguments])
    return code, capture.get()


def changes(settings):
    return [part for setting in settings for part in ("--set", setting)]


@pytest.fixture
def scratch(tmp_path):
    """A folder for files of full size, gone after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two pictures of different sizes, with truth, and image-level labels of VOC."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for folder in ("images", "truth"):
        (root / folder).mkdir()
    for name, size in (("a", (64, 80)), ("b", (72, 64))):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{name}.png")
        truth = rng.integers(0, 21, size).astype(np.uint8)
        Image.fromarray(truth).save(root / "truth" / f"{name}.png")
    (root / "labels.csv").write_text("image,labels\na.png,person;dog\nb.png,cat\n")
    return root


@pytest.mark.parametrize(
    ("name", "normalization"),
    [
        *(
            pytest.param(*model, marks=pytest.mark.rare)
            for model in (
                ("stage2.vit_small_patch16_384.voc21.crop480", "vit"),
                ("stage2.deit_small_patch16_224.coco91.crop480", "deit"),
                ("stage2.eva02_small_patch16_224.voc21.crop480", None),
            )
        ),
        ("stage2.dinov2_small_patch16_224.coco91.crop480", None),
        ("stage2.linear.deit_small_patch16_224.voc21.crop480", "deit"),
    ],
)
def test_stage2_import_predict_eval(scratch, photographs, name, normalization):
    labels = 91 if "coco91" in name else 21
    file = published.save_stage2(scratch / "best.pth", published.random_state(name), labels)
    decoder = "linear" if "linear" in name else "mask_transformer"
    if normalization is not None:
        net = {"normalization": normalization, "n_cls": labels, "decoder": {"name": decoder}}
        published.save_variant(scratch / "variant.yml", **net)
    code, text = said("import", file, "--out", scratch / "model")
    assert code == 0, text
    assert "74.02" in text and ("coco_seg" in text) == (labels == 91)
    path = scratch / "model" / "model.safetensors"
    settings = [*QUICK, "crf=none", *(["ensemble=plain"] if decoder == "linear" else [])]
    masks = scratch / "masks"
    images = photographs / "images"
    assert said("predict", path, images, "--out", masks, *changes(settings))[0] == 0
    for file in images.iterdir():
        with Image.open(file) as image, Image.open(masks / "masks" / file.name) as mask:
            assert mask.size == image.size and np.asarray(mask).max() < labels
    classes, out = "voc12" if labels == 21 else "coco14", scratch / "scores"
    code, text = said("eval", masks, photographs / "truth", "--classes", classes, "--out", out)
    assert code == 0, text
    (row,) = json.loads((out / "metrics.json").read_text())["rows"]
    assert row["conditions"]["images"] == 2 and 0 <= row["scores"]["miou"] <= 100


def test_stage1_import_label(scratch, photographs):
    name = "stage1.deit_small_WeakTr_voc20"
    file = published.save_stage1(scratch / "best.pth", published.random_state(name))
    code, text = said("import", file, "--out", scratch / "model")
    assert code == 0, text
    assert "pool max, reduction 8" in text
    out = scratch / "labels"
    settings = changes(["crf=none", "scales=[1.0]", "flip=false"])
    arguments = ("--labels", photographs / "labels.csv", "--out", out, *settings)
    path = scratch / "model" / "model.safetensors"
    assert said("label", path, photographs / "images", *arguments)[0] == 0
    seen = np.unique(np.asarray(Image.open(out / "masks" / "b.png")))
    assert set(seen) <= {0, VOC.index_of_name["cat"] + 1}


@pytest.mark.parametrize("name", list(published.KEY_LISTS))
def test_every_released_model_is_recognised(scratch, name, monkeypatch):
    monkeypatch.setattr(checkpoints, "save", lambda model, path, **_: path)  # 80 MB; see above
    state = {k: torch.zeros(shape) for k, (shape, _) in published.KEY_LISTS[name].items()}
    file = published.save_stage1(scratch / "x.pth", state)
    image_size = int(name.rsplit("crop", 1)[1].split(".")[0]) if "crop" in name else 224
    patch = 14 if "patch14" in name else 16
    kinds = {"deit_small_patch": "deit", "vit_small": "vit"}
    given = next((v for k, v in kinds.items() if k in name and "stage2" in name), None)
    imported = import_checkpoint(file, scratch / "out", Choices(normalization=given))
    config = imported.model.config
    assert (config.image_size, imported.model.patch_size) == (image_size, patch)
    assert len(imported.model.vit.blocks) == 12
    assert imported.model.vit.num_heads == (3 if "tiny" in name else 6)
    assert imported.classes == (COCO90 if "coco" in name else VOC)
    expected = CLIP if "eva02" in name else NORMALIZATIONS[given] if given else IMAGENET
    assert imported.model.normalization == expected
    assert ViT(config).normalization == expected, "a training from it, which takes the backbone's"


@pytest.mark.parametrize("name", ["D_d1_deit_mask", "D_d5_dinov2_mask", "D_d6_eva02_mask"])
def test_an_imported_segmenter_computes_what_the_published_one_does(tmp_path, name):
    config, golden = recipe.config(name), recipe.arrays(name)
    file = published.save_stage2(tmp_path / "x.pth", recipe.state_dict(name), config["n_cls"])
    size = config["image_size"]
    variant = published.save_variant(
        tmp_path / "settings.yml",
        image_size=(size, size),
        d_model=config["d_model"],
        n_heads=config["n_heads"],
        n_layers=config["n_layers"],
        n_cls=config["n_cls"],
        decoder={"name": "mask_transformer", "n_heads": config["decoder_heads"]},
    )
    names = [f"class {i}" for i in range(config["n_cls"] - 1)]
    imported = import_checkpoint(file, tmp_path / "out", Choices(variant=variant, classes=names))
    model, info = checkpoints.load(imported.path)
    assert info["classes"]["names"] == names and info["published"]["miou"] == 74.02
    with torch.no_grad():
        assert_golden(model(golden["input.sq64"]), golden["out.sq64.masks"])


@pytest.mark.parametrize("name", ["A_a1_voc20_avg", "A_a2_voc20_max"])
def test_an_imported_cam_model_computes_what_the_published_one_does(tmp_path, name):
    config, golden = recipe.config(name), recipe.arrays(name)
    file = published.save_stage1(tmp_path / "x.pth", recipe.state_dict(name))
    (tmp_path / "variant.yml").write_text(
        f"pool_type: {config['pool']}\nreduction: {config['reduction']}\n"
    )
    imported = import_checkpoint(file, tmp_path / "out")
    model, _ = checkpoints.load(imported.path)
    images = recipe.rnd("stage1.input.sq64", (2, 3, 64, 64))
    with torch.no_grad():
        output = model(images)
    assert_golden(output.class_logits, golden["out.sq64.cls_token_pred"])
    assert_golden(output.fine_logits, golden["out.sq64.fine_cam_pred"])


def tiny(seed_of="D_d5_dinov2_mask"):
    """A small stage-2 state dict (DINOv2, so that its normalisation is known)."""
    return recipe.state_dict(seed_of)


NAMES = [f"class {i}" for i in range(4)]
"""Of the five labels of `tiny`."""


def test_ddp_prefixes_and_bare_state_dicts(tmp_path):
    state = tiny()
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path / "bare.pth")
    tensors, facts = read_published(tmp_path / "bare.pth")
    assert tensors.keys() == state.keys() and facts == {}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "lightning.pth")
    assert read_published(tmp_path / "lightning.pth")[1] == {"epoch": 3}


def test_deit_and_augreg_are_not_guessed(tmp_path):
    file = published.save_stage2(tmp_path / "x.pth", tiny("D_d1_deit_mask"), 9)
    code, text = said("import", file, "--out", tmp_path / "out")
    assert code == cli.WRONG_INPUT
    assert "--normalization deit or vit" in " ".join(text.split())
    with pytest.raises(ValueError, match="pool: of stage 1, which this checkpoint is not"):
        import_checkpoint(file, tmp_path / "out", Choices(pool="avg", normalization="vit"))
    assert not (tmp_path / "out").exists()


def test_a_variant_of_the_other_stage_is_refused(tmp_path):
    file = published.save_stage1(tmp_path / "x.pth", recipe.state_dict("A_a2_voc20_max"))
    published.save_variant(tmp_path / "variant.yml")
    with pytest.raises(ValueError, match=r"belongs to a segmenter training, x\.pth is a cam"):
        import_checkpoint(file, tmp_path / "out")


def test_a_released_file_where_a_native_one_is_expected(tmp_path, photographs):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    code, text = said("predict", file, photographs / "images", "--out", tmp_path / "masks")
    assert code == cli.WRONG_INPUT and "weaktr import" in text


def test_a_pool_that_no_tensor_tells_is_asked_for(tmp_path):
    file = published.save_stage1(tmp_path / "x.pth", recipe.state_dict("A_a1_voc20_avg"))
    with pytest.raises(ValueError, match="--pool max or"):
        import_checkpoint(file, tmp_path / "out")
    with pytest.raises(ValueError, match="normalization: of stage 2, which this checkpoint is not"):
        import_checkpoint(file, tmp_path / "out", Choices(pool="avg", normalization="vit"))
    imported = import_checkpoint(file, tmp_path / "out", Choices(pool="avg"))
    assert imported.model.config.pool == "avg" and imported.model.config.reduction == 4.5


@pytest.mark.parametrize(
    ("net", "problem"),
    [
        ({"n_layers": 4}, r"n_layers 4 \(tensors: 3\)"),
        ({"n_cls": 21}, r"n_cls 21 \(tensors: 5\)"),
        ({"d_model": 64}, r"d_model 64 \(tensors: 48\)"),
        ({"patch_size": 14}, "patch projection says 16, got 14"),
        ({"decoder": {"name": "linear"}}, "decoder"),
        ({"n_heads": 5}, "divisor of the width 48"),
        ({"normalization": "clip"}, "expected one of"),
        ({"image_size": (96, 96)}, "pos_embed"),
    ],
)
def test_a_variant_of_another_checkpoint_is_refused(tmp_path, net, problem):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    fitting = {"d_model": 48, "n_heads": 6, "n_layers": 3, "n_cls": 5, "image_size": (64, 64)}
    published.save_variant(tmp_path / "variant.yml", **(fitting | net))
    with pytest.raises(ValueError, match=problem):
        import_checkpoint(file, tmp_path / "out", Choices(classes=NAMES))


@pytest.mark.parametrize(
    ("remove", "add", "problem"),
    [
        ("decoder.proj_patch", None, r"1 missing: decoder\.proj_patch"),
        ("encoder.blocks.1.attn.proj.bias", None, r"1 missing: vit\.blocks\.1\.attn\.proj\.bias"),
        (None, "encoder.blocks.0.attn.extra", r"1 unknown: vit\.blocks\.0\.attn\.extra"),
        ("encoder.blocks.1.", None, r"missing encoder\.blocks\.1|missing blocks\.1"),
        ("decoder.", None, r"expected a published checkpoint"),
        ("encoder.cls_token", None, r"missing encoder\.cls_token"),
        ("decoder.mask_norm", None, r"missing decoder\.mask_norm\.weight"),
    ],
)
def test_missing_and_unknown_tensors_are_named(tmp_path, remove, add, problem):
    state = {k: v for k, v in tiny().items() if remove is None or not k.startswith(remove)}
    if add:
        state[add] = torch.zeros(1)
    file = published.save_stage2(tmp_path / "x.pth", state, 5)
    with pytest.raises(ValueError, match=problem):
        import_checkpoint(file, tmp_path / "out", Choices(classes=NAMES))


def test_stage1_with_a_block_less_is_refused(tmp_path):
    state = recipe.state_dict("A_a2_voc20_max")
    state = {k: v for k, v in state.items() if not k.startswith("blocks.2.")}
    file = published.save_stage1(tmp_path / "x.pth", state)
    with pytest.raises(ValueError, match="blocks are missing or left over"):
        import_checkpoint(file, tmp_path / "out")


def test_a_backbone_alone_is_told_from_a_checkpoint(tmp_path):
    state = {k: v for k, v in recipe.state_dict("A_a2_voc20_max").items() if "fusion" not in k}
    torch.save({"model": state}, tmp_path / "deit.pth")
    with pytest.raises(ValueError, match="a backbone alone"):
        import_checkpoint(tmp_path / "deit.pth", tmp_path / "out")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = tiny()
    state["decoder.cls_emb"][0, 0, 0] = float("nan")
    file = published.save_stage2(tmp_path / "x.pth", state, 5)
    with pytest.raises(ValueError, match=r"not finite: decoder\.cls_emb"):
        import_checkpoint(file, tmp_path / "out")


def test_class_names_of_other_data_sets(tmp_path):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    published.save_variant(
        tmp_path / "variant.yml", d_model=48, n_layers=3, n_cls=5, image_size=64,
    )  # fmt: skip
    with pytest.raises(ValueError, match="4 is neither VOC"):
        import_checkpoint(file, tmp_path / "out")
    with pytest.raises(ValueError, match="expected 4 names for this model, got 80"):
        import_checkpoint(file, tmp_path / "out", Choices(classes=COCO80.names))
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n\n")
    arguments = ("--out", tmp_path / "out", "--classes", tmp_path / "names.txt")
    assert said("import", file, *arguments)[0] == 0
    assert checkpoints.load(tmp_path / "out" / "model")[1]["classes"]["names"] == NAMES
    odd = ["[/red]", "[b", "Ω", "a\tb"]  # rich's marks are no marks here
    (tmp_path / "names.txt").write_text("\n".join(odd))
    code, text = said("import", file, *arguments)
    assert code == 0 and "[/red], [b, Ω" in text
    (tmp_path / "names.txt").write_text("\n".join(["a", "b", "c", "\x1b[2J"]))
    code, text = said("import", file, *arguments)
    assert code == cli.WRONG_INPUT and "without control characters" in text
    (tmp_path / "names.txt").write_bytes(b"\xff")
    code, text = said("import", file, *arguments)
    assert code == cli.WRONG_INPUT and "names.txt" in text


class Evil:
    """Makes a folder when a careless reader unpickles it."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["args", "model", "miou"])
def test_a_malicious_pickle_runs_nothing(tmp_path, place, zipped):
    wrapper = {"model": tiny(), "epoch": 1}
    wrapper |= {"model": {"x": Evil(tmp_path / "pwned")}} if place == "model" else {}
    wrapper |= {place: Evil(tmp_path / "pwned")} if place != "model" else {}
    file = tmp_path / "evil.pth"
    torch.save(wrapper, file, _use_new_zipfile_serialization=zipped)
    code, text = said("import", file, "--out", tmp_path / "out")
    assert code == cli.WRONG_INPUT
    text = " ".join(text.split())
    assert "mkdir, which could run code. Nothing was run" in text
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "value", [np.ones(3, "c16"), np.array(object()), np.datetime64("2020"), print]
)
def test_of_numpy_only_numbers_are_read(tmp_path, value):
    torch.save({"model": tiny(), "extra": value}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"refused|plain number"):
        read_torch_file(tmp_path / "x.pth")


def test_numpy_numbers_come_back(tmp_path):
    numbers = [np.float64(0.1), np.float32(0.5), np.int64(-7), np.uint8(200), np.bool_(True)]
    torch.save(numbers, tmp_path / "x.pth")
    assert read_torch_file(tmp_path / "x.pth") == [0.1, 0.5, -7, 200, True]


def test_a_malicious_variant_runs_nothing(tmp_path):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    text = f"net_kwargs: !!python/object/apply:os.mkdir ['{tmp_path / 'pwned'}']\n"
    (tmp_path / "variant.yml").write_text(text)
    with pytest.raises(ValueError, match="nothing was run"):
        import_checkpoint(file, tmp_path / "out")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("text", ["[1, 2]", "a: 1", "net_kwargs: 3", "a: [", "pool_type: max"])
def test_a_variant_of_something_else_is_refused(tmp_path, text):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    (tmp_path / "variant.yml").write_text(text)
    with pytest.raises(ValueError, match=r"variant\.yml: (expected|not a plain)"):
        import_checkpoint(file, tmp_path / "out")


@pytest.mark.parametrize(
    ("net", "problem"),
    [
        ({"n_heads": "six"}, "encoder_heads: "),
        ({"n_heads": -6}, "encoder_heads: "),
        ({"n_heads": 1.5}, "encoder_heads: "),
        ({"n_heads": 10**400}, "encoder_heads: "),
        ({"image_size": (10**9, 3)}, "image_size: "),
        ({"image_size": (3,)}, "image_size: "),
        ({"image_size": "large"}, "image_size: "),
        ({"patch_size": True}, "patch_size: "),
        ({"normalization": ["deit"]}, "normalization: "),
        ({"decoder": {"name": 3}}, "decoder: "),
        ({"decoder": {"name": "linear", "n_heads": 0}}, "decoder_heads: "),
        ({"decoder": 3}, "expected the variant.yml that"),
    ],
)
def test_a_variant_of_wrong_types_is_refused(tmp_path, net, problem):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    published.save_variant(tmp_path / "variant.yml", **net)
    with pytest.raises(ValueError, match=rf"variant\.yml: .*{problem}") as caught:
        import_checkpoint(file, tmp_path / "out", Choices(classes=NAMES))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "reduction", ["1" + "0" * 400, "1.0e-320", "1.0e-4", "0", "-8", ".inf", ".nan", "eight", "[8]"]
)
def test_a_variant_of_no_reduction_is_refused(tmp_path, reduction):
    path = tmp_path / "variant.yml"
    path.write_text(f"pool_type: gmp\nreduction: {reduction}\n")
    with pytest.raises(ValueError, match=f"^{path}: ") as caught:
        read_variant(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    path.write_text("pool_type: gmp\nreduction: 16\n")
    assert read_variant(path).reduction == 16


SHAPES = {
    "encoder.cls_token": (torch.zeros(3), "expected a shape of 3 sides"),
    "encoder.pos_embed": (torch.zeros(1, 17, 0), "expected a shape of 3 sides"),
    "encoder.patch_embed.proj.weight": (torch.zeros(48, 3), "expected a shape of 4 sides"),
    "encoder.blocks.0.mlp.fc1.weight": (torch.tensor(1.0), "expected a shape of 2 sides"),
    "encoder.blocks.999999999.norm1.bias": (torch.zeros(1), "missing blocks.3 of 1000000000"),
    "encoder.blocks.99999999999999.norm1.bias": (torch.zeros(1), "1 unknown"),
    "decoder.mask_norm.weight": (torch.tensor(1.0), "expected an entry for each label"),
    "decoder.cls_emb": (torch.zeros(1, 5, 48, dtype=torch.int8), "of another type"),
    "decoder.proj_dec.bias": (torch.full((48,), 1e300, dtype=torch.float64), "not finite"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_tensors_of_other_shapes_and_types_are_refused(tmp_path, name):
    value, problem = SHAPES[name]
    file = published.save_stage2(tmp_path / "x.pth", tiny() | {name: value}, 5)
    with pytest.raises(ValueError, match=rf"x\.pth: .*{problem}") as caught:
        import_checkpoint(file, tmp_path / "out", Choices(classes=NAMES))
    assert "\n" not in str(caught.value)


def test_sizes_without_weights_allocate_nothing(tmp_path):
    """A class token of 16384 numbers and empty blocks do not make a model of 3 TB."""
    state = {name: torch.zeros(0) for name in tiny()}
    state |= {f"encoder.blocks.{i}.norm1.bias": torch.zeros(0) for i in range(64)}
    state["encoder.cls_token"] = torch.zeros(1, 1, 16384)
    state["encoder.pos_embed"] = torch.zeros(1, 2, 1)
    state["encoder.patch_embed.proj.weight"] = torch.zeros(16384, 1, 1, 1)
    state["encoder.blocks.0.mlp.fc1.weight"] = torch.zeros(65536, 1)
    state["decoder.mask_norm.weight"] = torch.zeros(5)
    file = published.save_stage2(tmp_path / "x.pth", state, 5)
    with pytest.raises(ValueError, match=r"x\.pth: .*of another shape"):
        import_checkpoint(file, tmp_path / "out", Choices(classes=NAMES))


def test_cut_off_and_foreign_files_are_refused(tmp_path):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match="not a whole file"):
        import_checkpoint(file, tmp_path / "out")
    file.write_text("<html>Google Drive: quota exceeded</html>")
    with pytest.raises(ValueError, match="not a whole file"):
        import_checkpoint(file, tmp_path / "out")
    torch.save(torch.zeros(3), file)
    with pytest.raises(ValueError, match="expected a state dict"):
        import_checkpoint(file, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        import_checkpoint(tmp_path / "nothing.pth", tmp_path / "out")


def test_a_model_that_was_trained_is_not_replaced(tmp_path):
    file = published.save_stage2(tmp_path / "x.pth", tiny(), 5)
    (tmp_path / "out").mkdir()
    trained = checkpoints.save(
        small.cam_model("vit_tiny_patch16_224", 2, position="published_cam", image_size=32),
        tmp_path / "out" / "model",
    )
    before = trained.read_bytes()
    code, text = said("import", file, "--out", tmp_path / "out")
    assert code == cli.WRONG_INPUT and "choose another name, or move it away" in text
    assert trained.read_bytes() == before
