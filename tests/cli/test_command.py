"""The program itself: its commands, help, files of flags, and how errors end."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from scoresde.cli import main as program
from scoresde.cli.command import as_flags, command
from scoresde.cli.config import effective, flags_from, remember
from scoresde.cli.flags import Repeated, ScriptFlags
from scoresde.cli.train import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ScriptFlags):
    """Some flags of each kind."""

    data: Path
    """A path."""
    out: Path | None = None
    """A folder."""
    steps: int = 3
    """A number."""
    rate: float = 0.1
    """Another."""
    fast: bool = False
    """Yes or no."""
    fill: bool | None = None
    """Or neither."""
    names: tuple[str, ...] = ()
    """Several texts."""
    levels: tuple[int, ...] | None = None
    """Several numbers, or none."""
    condition: Repeated = ()
    """Given once for each."""


def parsed(*words: str) -> ToyConfig:
    found: list[ToyConfig] = []
    command(found.append, ToyConfig, words)
    return found[0]


FULL = ToyConfig(
    data=Path("some where.npy"),
    steps=7,
    rate=1e-3,
    fast=True,
    fill=False,
    names=("a b", "c"),
    levels=(0, -1),
    condition=("x=1", "y=2"),
)


@pytest.mark.parametrize(
    "config", [ToyConfig(data=Path("x.npy")), FULL, ToyConfig(data=Path("x"), levels=(), names=("one",))], ids=str
)
def test_what_is_written_beside_a_run_is_read_as_the_same_flags(config: ToyConfig, tmp_path: Path) -> None:
    remember(config, tmp_path)
    again = parsed("--config", str(tmp_path / "config.yaml"))
    assert effective(again, out=None) == effective(config, out=None) and again.out == tmp_path
    assert parsed(f"--config={tmp_path / 'config.yaml'}") == again


@pytest.mark.parametrize("name", [name for name in program.COMMANDS if name != "info"])  # which writes nothing
def test_the_flags_of_every_command_are_read_again(name: str, tmp_path: Path) -> None:
    """All of them, those that nobody gave too: none is of a kind that a word cannot say."""
    kind = getattr(importlib.import_module(f"scoresde.cli.{name}"), f"{name.capitalize()}Config")
    needed = {field.name: Path("x") for field in fields(kind) if field.default is MISSING}
    hints = get_type_hints(kind)
    config = kind(**{key: "x" if hints[key] is str else value for key, value in needed.items()})
    remember(config, tmp_path)
    found: list[Any] = []
    command(found.append, kind, ["--config", str(tmp_path / "config.yaml")])
    assert found == [replace(config, out=tmp_path)]


def test_flags_beside_a_file_win(tmp_path: Path) -> None:
    remember(FULL, tmp_path)
    words = ["--steps", "9", "--no-fast", "--names", "z", "--condition", "z=3", "--levels", "None"]
    found = parsed("--config", str(tmp_path / "config.yaml"), *words)
    assert (found.steps, found.fast, found.names, found.condition) == (9, False, ("z",), ("z=3",))
    assert found.levels is None and found.rate == 1e-3


def test_paths_of_a_run_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.npy").touch()
    content = effective(ToyConfig(data=Path("x.npy"), condition=("obs=x.npy", "obs2=0.3")))
    assert content["data"] == str(tmp_path / "x.npy")
    assert content["condition"] == [f"obs={tmp_path / 'x.npy'}", "obs2=0.3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps: 3", "gives 'stepps', which toy does not have; did you mean steps?"),
        ("zzz: 3", "it has "),
        ("steps: [1, {a: 2}]", "steps: expected a text, a number"),
        ("data: 2024-01-01", "got date"),
        ("steps: 3\nsteps: 4", "steps is given twice"),
        ("- 1\n- 2", "expected lines `name: value`, got list"),
        ("a: [", "this is no YAML"),
        ("!!python/object/apply:os.system ['true']", "this is no YAML"),
        ("names: [--fast]", "does not start with two dashes"),
        ("command: train", "the configuration of `scoresde train`, and this is toy"),
        ("1: 2", "expected lines"),
        ("\xff", "this is no YAML"),
    ],
)
def test_a_bad_file_is_refused_in_words(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as refused:
        flags_from(path, ToyConfig)
    assert message in str(refused.value)
    with pytest.raises(SystemExit, match="error: ") as stopped:
        parsed("--data=x", "--config", str(path))
    assert isinstance(stopped.value.code, str)  # printed on stderr, with exit code 1


@pytest.mark.parametrize("words", [("--config",), ("--config", "a", "--config", "b"), ("--config", "--fast")], ids=str)
def test_one_file_of_flags_is_taken(words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="takes one file"):
        parsed("--data=x", *words)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        parsed("--config", str(tmp_path / "nowhere.yaml"))


def test_a_wrong_flag_ends_with_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parsed("--data=x", "--stepps", "3")
    assert stopped.value.code == 1 and "--steps" in capsys.readouterr().err


def test_the_program_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(["--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    for name, what in program.COMMANDS.items():
        assert name in shown and what in shown
        module = importlib.import_module(f"scoresde.cli.{name}")
        assert callable(module.main) and hasattr(module, f"{name.capitalize()}Config")
    with pytest.raises(SystemExit) as stopped:
        program.main(["--version"])
    assert capsys.readouterr().out.strip() == importlib.import_module("scoresde").__version__
    with pytest.raises(SystemExit, match="no command 'smaple'; did you mean sample"):
        program.main(["smaple"])


@pytest.mark.parametrize("name", list(program.COMMANDS))
def test_each_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main([name, "--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert f"usage: scoresde {name}" in shown and "--config FILE" in shown
    assert ":func:" not in shown and ":class:" not in shown
    if "--ema, --no-ema" in shown:  # what opens a checkpoint opens any of its averages
        assert "--ema-decay" in shown and "--ema-width" in shown


def test_the_program_runs_and_loads_little_for_its_help() -> None:
    code = (
        "import sys\nfrom scoresde.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit as stopped: assert not stopped.code\n"
        "assert 'torch' not in sys.modules\n"
        "try: main(['sample', '--help'])\nexcept SystemExit as stopped: assert not stopped.code\n"
        "late = {'matplotlib', 'sklearn', 'diffusers', 'transformers', 'huggingface_hub', 'accelerate', 'scipy'}\n"
        "assert not late & {name.split('.')[0] for name in sys.modules}, late & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_scoresde_is_the_program() -> None:
    words = [sys.executable, "-m", "scoresde", "smaple"]  # a mistake that is told before torch is loaded
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_warnings_and_interrupts_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def warned(_: ToyConfig) -> None:
        sys.stderr.write(warnings.formatwarning("condition 'obs' is odd", UserWarning, "file.py", 3))

    def stopped(_: ToyConfig) -> None:
        raise KeyboardInterrupt

    usual = warnings.formatwarning
    command(warned, ToyConfig, ["--data=x"])
    assert capsys.readouterr().err == "warning: --condition obs is odd\n" and warnings.formatwarning is usual
    with pytest.raises(SystemExit, match=r"^stopped\.$"):
        command(stopped, ToyConfig, ["--data=x"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("early_stopping needs samples; give held_out=0.05 or leave it out.", "--early-stopping needs samples; give "
         "--held-out 0.05 or leave it out."),
        ("held_out must be a share in (0, 1), or a data set with len(d) and d[i]; got 2.", "--held-out must be a share "
         "in (0, 1), or a file or folder; got 2."),
        ("use skip_bad=True, frames='first'", "use --skip-bad, --frames first"),
        ("sharding='full' needs torch", "--sharding full needs torch"),
        # what is no flag, or a part of a Python call, a path or another name, stays
        ("load_model(folder, steps=3) of runs/held_out/x, my_batch_size, {'batch_size': 3}", ) * 2,
    ],
)  # fmt: skip
def test_errors_are_told_in_words_of_flags(words: str, told: str) -> None:
    assert as_flags(words, TrainConfig) == told


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    monkeypatch.delitem(sys.modules, "scoresde.cli.command")  # so that it is imported anew
    with pytest.raises(SystemExit, match=r'error: .*pip install "scoresde\[cli\]"'):
        program.main(["sample", "--help"])
