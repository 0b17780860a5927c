"""The public face: what is exported, how a run is loaded, and what `predict` answers on tensors, pictures and paths."""

import inspect

import pytest
import torch
from PIL import Image

import irnet
from irnet.errors import InputError

BOXES = torch.tensor([[10.0, 12, 60, 70], [40, 5, 90, 100]])


@pytest.fixture(scope="module")
def reasoner(trained):
    return irnet.load(trained, device="cpu")


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (3, 120, 150), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_public_names_and_signatures_are_these():
    assert sorted(irnet.__all__) == ["IRNet", "Reasoner", "__version__", "load"]
    parameters = {name: list(inspect.signature(getattr(irnet, name)).parameters) for name in ("IRNet", "load")}
    assert parameters == {
        "IRNet": ["config", "classes", "class_graph", "word_vectors", "trunk"],
        "load": ["run", "device", "best"],
    }
    assert list(inspect.signature(irnet.Reasoner).parameters) == ["model", "classes", "config"]
    assert list(inspect.signature(irnet.Reasoner.predict).parameters) == ["self", "images", "boxes"]
    with pytest.raises(AttributeError, match="has no attribute 'reasoning'"):
        irnet.reasoning  # noqa: B018


def test_answers_have_torchvisions_form(reasoner, pixels):
    (answer,) = reasoner.predict(pixels, BOXES)
    classes = len(reasoner.classes)
    assert torch.equal(answer["boxes"], BOXES)
    assert {key: (value.dtype, list(value.shape)) for key, value in answer.items()} == {
        "boxes": (torch.float32, [2, 4]),
        "labels": (torch.int64, [2]),
        "scores": (torch.float32, [2]),
        "logits": (torch.float32, [2, classes]),
        "attention": (torch.float32, [2, 3]),
    }
    torch.testing.assert_close(answer["attention"].sum(1), torch.ones(2))
    assert torch.equal(answer["labels"], answer["logits"].argmax(1))
    torch.testing.assert_close(answer["scores"], answer["logits"].softmax(1).gather(1, answer["labels"][:, None])[:, 0])
    assert "classes, on cpu" in repr(reasoner) and not reasoner.model.training


def test_tensor_picture_and_path_are_one_image(reasoner, pixels, tmp_path):
    picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "image.png")
    forms = [pixels, pixels.float() / 255, pixels.double() / 255, picture, tmp_path / "image.png"]
    answers = [reasoner.predict(form, BOXES)[0] for form in [*forms, str(tmp_path / "image.png")]]
    for answer in answers[1:]:
        assert all(torch.equal(answer[key], answers[0][key]) for key in answer)


def test_a_batch_answers_as_its_images_do_alone(reasoner, pixels):
    images, boxes = [pixels, pixels[:, :90, :110], pixels], [BOXES, BOXES[:1], torch.empty(0)]
    together = reasoner.predict(images, boxes)
    assert [len(answer["labels"]) for answer in together] == [2, 1, 0]
    for image, own, answer in zip(images[:2], boxes, together, strict=False):
        torch.testing.assert_close(answer["logits"], reasoner.predict(image, own)[0]["logits"], rtol=1e-4, atol=1e-5)
    assert reasoner.predict([], []) == []


def test_answers_are_those_of_the_command(reasoner, trained, scenes_root, irnet, tmp_path):
    import json

    image = sorted((scenes_root / "images").rglob("*.png"))[0]
    (tmp_path / "boxes.json").write_text(json.dumps(BOXES.tolist()))
    words = ["predict", image, "--boxes", tmp_path / "boxes.json", "--checkpoint", trained, "--device", "cpu", "--json"]
    said = json.loads(irnet.run([*words, "--output", tmp_path / "out.png"]).out)["regions"]
    (answer,) = reasoner.predict(image, BOXES)
    assert [reasoner.classes[label] for label in answer["labels"]] == [region["class"] for region in said]
    torch.testing.assert_close(answer["scores"], torch.tensor([r["score"] for r in said]), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("image", "boxes", "says"),
    [
        (torch.zeros(120, 150, 3, dtype=torch.uint8), BOXES, "image 1: is a tensor"),
        (torch.full((3, 120, 150), 2.0), BOXES, "white|values from 2 to 2"),
        (torch.zeros(3, 120, 150, dtype=torch.int64), BOXES, "torch.int64"),
        (3, BOXES, "is a int"),
        (torch.zeros(3, 120, 150), BOXES[:, :3], r"its boxes are torch.float32 \[2, 3\]"),
        (torch.zeros(3, 120, 150), BOXES > 0, "torch.bool"),
        (torch.zeros(3, 120, 150), BOXES[:, [2, 1, 0, 3]], "has no width or no height"),
        (torch.zeros(3, 120, 150), BOXES + 100, "reaches outside the image"),
        (Image.new("F", (150, 120)), BOXES, "white cannot be known"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_or_no_box_is_refused(reasoner, image, boxes, says):
    with pytest.raises(InputError, match=says):
        reasoner.predict([image], [boxes])


def test_as_many_tensors_of_boxes_as_images(reasoner, pixels):
    with pytest.raises(InputError, match="1 tensors for 2 images"):
        reasoner.predict([pixels, pixels], [BOXES])


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no checkpoint"):
        irnet.load(tmp_path)
