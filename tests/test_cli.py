from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLES
from PIL import Image

import codec
from codec import cli, container
from codec import image as images
from codec import model as models

COFFEE = SAMPLES / "coffee.png"


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run, expect status 2 and one line on standard error; return it."""
    assert cli.main([str(a) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("rdae: ") and captured.err.count("\n") == 1
    return captured.err


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str], photograph: np.ndarray) -> None:
    small, back = tmp_path / "c.rdae", tmp_path / "c.png"
    assert cli.main(["compress", str(COFFEE), "-o", str(small), "--verify"]) == 0
    line = capsys.readouterr().out
    size = small.stat().st_size
    assert f"{size} bytes" in line and f"{8 * size / (600 * 400):.3f} bpp" in line
    assert cli.main(["decompress", str(small)]) == 0
    restored = images.read(back)
    np.testing.assert_array_equal(restored, codec.decompress(small.read_bytes()))
    error = np.mean((restored.astype(float) - photograph) ** 2)
    assert f"{10 * np.log10(255**2 / error):.2f} dB" in line
    assert size < COFFEE.stat().st_size / 8 and error < 100


def test_effort(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model_file: Path) -> None:
    sizes, common = {}, ["compress", str(COFFEE), "--force", "--verify", "--model", str(tiny_model_file), "--quality", "1"]
    for effort in (0, 1):
        output = tmp_path / f"{effort}.rdae"
        assert cli.main([*common, "-o", str(output), "--effort", str(effort)]) == 0
        sizes[effort] = output.stat().st_size
    assert cli.main([*common, "-o", str(tmp_path / "plain.rdae")]) == 0
    assert (tmp_path / "plain.rdae").read_bytes() == (tmp_path / "0.rdae").read_bytes() and sizes[1] != sizes[0]
    capsys.readouterr()
    for wrong in ("-1", "10"):
        assert f"effort runs from 0 to 9; not {wrong}" in fails(capsys, *common, "-o", tmp_path / "x.rdae", f"--effort={wrong}")
    assert not (tmp_path / "x.rdae").exists()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*common, "--effort", "high"])


def test_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model_file: Path) -> None:
    output, common = tmp_path / "c.rdae", ["compress", str(COFFEE), "--force", "--model", str(tiny_model_file), "--quality", "1"]
    files = []
    for more in (["--tune", "ms-ssim"], ["--tune", "ms-ssim", "--effort", "2"], ["--tune", "psnr"], []):
        assert cli.main([*common, "-o", str(output), *more]) == 0
        files.append(output.read_bytes())
    assert files[0] == files[1] != files[2] == files[3]
    capsys.readouterr()
    wrong = fails(capsys, *common, "-o", tmp_path / "x.rdae", "--tune", "ms-ssim", "--effort", "0")
    assert "tune ms-ssim is up to the search" in wrong and not (tmp_path / "x.rdae").exists()
    with pytest.raises(SystemExit, match="2"):
        cli.main([*common, "--tune", "beauty"])


def test_info_counts_every_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "c.rdae"
    data = codec.compress(images.read(COFFEE))
    small.write_bytes(data)
    assert cli.main(["info", str(small), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == codec.models()[0] and facts["width"] == 600 and facts["height"] == 400
    parts = {name: size for name, size in facts["bytes"].items() if name != "total"}
    assert facts["bytes"]["total"] == len(data) == sum(parts.values()) and set(parts) == {"side information", "latents", "header"}
    assert facts["bytes"]["header"] <= 32
    assert cli.main(["info", str(small)]) == 0
    assert codec.models()[0] in capsys.readouterr().out


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == codec.models()


def test_a_model_file_can_be_named(tmp_path: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "c.rdae"
    assert cli.main(["compress", str(COFFEE), "-o", str(small), "--model", str(tiny_model_file), "--quality", "1"]) == 0
    capsys.readouterr()
    models._load_file.cache_clear()  # as in a process that has not seen the model yet
    models._loaded.clear()
    assert "--model" in fails(capsys, "decompress", small)
    assert cli.main(["decompress", str(small), "--model", str(tiny_model_file)]) == 0
    capsys.readouterr()
    assert cli.main(["info", str(small)]) == 0
    assert "not shipped" in capsys.readouterr().out


def test_overwriting_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "c.rdae"
    output.write_bytes(b"precious")
    assert "--force" in fails(capsys, "compress", COFFEE, "-o", output)
    assert output.read_bytes() == b"precious"
    assert cli.main(["compress", str(COFFEE), "-o", str(output), "--force"]) == 0
    assert container.read(output.read_bytes()).width == 600


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing, text = tmp_path / "nothing.png", tmp_path / "text.png"
    text.write_text("hello")
    assert str(nothing) in fails(capsys, "compress", nothing)
    assert "not an image" in fails(capsys, "compress", text)
    assert "not an .rdae" in fails(capsys, "decompress", text, "-o", tmp_path / "out.png")
    assert "not an .rdae" in fails(capsys, "info", text)
    assert "No such file" in fails(capsys, "info", nothing)
    assert "no such folder" in fails(capsys, "compress", COFFEE, "-o", tmp_path / "a" / "b.rdae")
    assert "is a folder; -r" in fails(capsys, "compress", tmp_path)
    assert "no quality 777" in fails(capsys, "compress", COFFEE, "-o", tmp_path / "o.rdae", "--quality", 777)
    assert "nosuch" in fails(capsys, "compress", COFFEE, "-o", tmp_path / "o.rdae", "--model", "nosuch")
    assert "not an rdae model" in fails(capsys, "compress", COFFEE, "-o", tmp_path / "o.rdae", "--model", text)
    good = tmp_path / "good.rdae"
    good.write_bytes(codec.compress(np.zeros((20, 20, 3), np.uint8)))
    assert "cannot tell an image format" in fails(capsys, "decompress", good, "-o", tmp_path / "out.xyz")
    damaged = bytearray(good.read_bytes())
    damaged[-6] ^= 4
    good.write_bytes(damaged)
    assert "checksum" in fails(capsys, "decompress", good)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.rdae", "text.png"]


def test_usage_errors_have_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["compress"], ["nonsense"], ["compress", "x", "--quality", "high"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2


@pytest.mark.parametrize("command", [["--help"], ["compress", "--help"], ["models"], ["info", "FILE"]])
def test_light_commands_do_not_import_torch(tmp_path: Path, command: list[str]) -> None:
    file = tmp_path / "x.rdae"
    # Of the first profile; to tell side information from latents, those of the second are read as far as that goes.
    file.write_bytes(codec.compress(np.zeros((9, 9, 3), np.uint8), model="lambda-0.013"))
    command = [str(file) if word == "FILE" else word for word in command]
    program = (
        "import sys\nfrom codec import cli\ntry:\n    status = cli.main(sys.argv[1:])\nexcept SystemExit as stop:\n    status = stop.code\n"
        "print(sorted({'torch', 'numpy', 'constriction'} & set(sys.modules)), status, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[] 0"


NEVER = {"compressai", "lightning", "matplotlib", "pandas", "scipy", "skimage", "torch_geometric", "torchvision", "train", "tools"}


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("codec", NEVER | {"torch", "numpy", "constriction", "safetensors"}),
        ("codec, codec.batch, codec.decoder, codec.image, codec.model, codec.rate", NEVER),
    ],
)
def test_import_codec_pulls_in_little(modules: str, unwanted: set[str]) -> None:
    program = f"import sys, {modules}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    pulled = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "codec" in pulled and not unwanted & set(pulled)


def test_common_formats_are_found_without_all_of_pillow_s_plugins() -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom codec import image\nprint(image.format_of(Path('a.PNG')), image.format_named('jpg'))\n"
        "print('PIL.TiffImagePlugin' in sys.modules, image.format_of(Path('a.tif')), image.format_named('jpeg2000'))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["PNG", "JPEG", "False", "TIFF", "JPEG2000"]


def test_precision_is_of_the_pixels_only(tmp_path: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for precision in ("fp32", "bf16", "auto"):
        small, back = tmp_path / f"{precision}.rdae", tmp_path / f"{precision}.png"
        common = ["--model", str(tiny_model_file), "--precision", precision, "--force"]
        assert cli.main(["compress", str(COFFEE), "-o", str(small), *common]) == 0
        # All from one stream: what differs is the synthesis.
        assert cli.main(["decompress", str(tmp_path / "fp32.rdae"), "-o", str(back), *common]) == 0
        shown.append(images.read(back).astype(int))
    assert np.abs(shown[0] - shown[1]).max() in range(1, 6)
    with pytest.raises(SystemExit) as stop:
        cli.main(["compress", str(COFFEE), "--precision", "fp64"])
    assert stop.value.code == 2


def test_as_a_program(tmp_path: Path) -> None:
    """The installed console script, in a process of its own: a traceback would show here."""
    script = Path(sys.executable).parent / "rdae"
    command = [str(script)] if script.exists() else [sys.executable, "-m", "codec.cli"]
    run = subprocess.run([*command, "compress", "missing.png"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr == "rdae: missing.png: No such file or directory\n"
    Image.new("RGB", (33, 17), "teal").save(tmp_path / "a.png")
    subprocess.run([*command, "compress", "a.png"], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "a.png").unlink()
    subprocess.run([*command, "decompress", "a.rdae"], cwd=tmp_path, check=True, capture_output=True)
    assert np.abs(images.read(tmp_path / "a.png").astype(int) - [0, 128, 128]).mean() < 12


def test_rate_control(tmp_path: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def compressed(*arguments: object) -> tuple[int, str]:
        output = tmp_path / "x.rdae"
        command = ["compress", COFFEE, "-o", output, "--model", tiny_model_file, "--force", *arguments]
        assert cli.main([str(a) for a in command]) == 0
        return output.stat().st_size, capsys.readouterr().err

    sizes = [compressed("--quality", q)[0] for q in (1, 2, 3)]
    assert compressed("--size", f"{sizes[1] / 1000 + 0.001}k")[0] == sizes[1]
    assert compressed("--bpp", 8 * sizes[2] / 240_000 - 0.001) == (sizes[2], "")
    size, err = compressed("--psnr", 70)
    assert size in sizes and err.startswith(f"rdae: warning: {COFFEE}: 70 dB are out of reach") and err.count("\n") == 1
    (tmp_path / "x.rdae").unlink()
    assert "cannot be coded in 99 bytes" in fails(
        capsys, "compress", COFFEE, "-o", tmp_path / "x.rdae", "--model", tiny_model_file, "--size", 99
    )
    assert list(tmp_path.iterdir()) == []


def test_regions_tiles_and_threads(tmp_path: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, model = tmp_path / "x.rdae", ["--model", str(tiny_model_file)]
    assert cli.main(["compress", str(COFFEE), "-o", str(small), "--tile", "256", "--jobs", "2", "--verify", *model]) == 0
    assert cli.main(["info", str(small)]) == 0
    assert "6 tiles of 256 pixels" in capsys.readouterr().out
    assert cli.main(["decompress", str(small), "-o", str(tmp_path / "all.png"), *model]) == 0
    assert cli.main(["decompress", str(small), "-o", str(tmp_path / "part.png"), "--region", "30,40,200,100", "--jobs", "2", *model]) == 0
    whole, part = images.read(tmp_path / "all.png").astype(int), images.read(tmp_path / "part.png")
    np.testing.assert_allclose(part, whole[40:140, 30:230], atol=1)
    capsys.readouterr()
    assert "does not lie in" in fails(capsys, "decompress", small, "-o", tmp_path / "no.png", "--region", "590,0,20,20", *model)


def test_transparency_strictness_and_metadata(tmp_path: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(tiny_model_file)]
    rgba = np.random.default_rng(0).integers(0, 256, (30, 40, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png", exif=Image.Exif())
    assert cli.main(["compress", str(tmp_path / "x.png"), "--verify", *model]) == 0
    assert cli.main(["info", str(tmp_path / "x.rdae"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert facts["mode"] == "RGB with alpha" and facts["bytes"]["alpha"] > 1200
    assert "cannot hold the picture's transparency" in fails(capsys, "decompress", tmp_path / "x.rdae", "-o", tmp_path / "x.jpg", *model)
    assert cli.main(["decompress", str(tmp_path / "x.rdae"), "-o", str(tmp_path / "y.png"), *model]) == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "y.png"))[..., 3], rgba[..., 3])
    Image.fromarray(np.full((5, 5), 40_000, np.uint16)).save(tmp_path / "deep.png")
    capsys.readouterr()
    assert "strict" in fails(capsys, "compress", tmp_path / "deep.png", "--strict", *model)
    assert cli.main(["compress", str(tmp_path / "deep.png"), *model]) == 0
    assert "rounded to eight" in capsys.readouterr().err
    assert "no image format 'xyz'" in fails(capsys, "decompress", tmp_path / "x.rdae", "-o", "-", "--format", "xyz", *model)


def test_the_limit_on_pixels(
    tmp_path: Path, tiny_model_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "MAX_PIXELS", container.MAX_PIXELS)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    small, model = tmp_path / "x.rdae", ["--model", str(tiny_model_file)]
    assert "exceed the limit of 1000 pixels" in fails(capsys, "compress", COFFEE, "-o", small, "--max-pixels", 1000, *model)
    assert cli.main(["compress", str(COFFEE), "-o", str(small), "--max-pixels", "0", *model]) == 0
    capsys.readouterr()
    assert "exceed the limit" in fails(capsys, "decompress", small, "--max-pixels", 239_999, *model)
