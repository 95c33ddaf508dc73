"""`make fuzz`: each decoder in a process of its own under atheris, for some seconds, from valid values on.

python -m tests.fuzz                 every target for 20 seconds each
python -m tests.fuzz --only keyset   this one
python -m tests.fuzz --only keyset --input FILE   one input again, as a finding says
"""

from __future__ import annotations

import argparse
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Seconds and MiB that one input may take, and the most bytes that it has.
_TIMEOUT, _MEMORY, _LARGEST = 5, 1024, 8192
_ROOT = Path(__file__).parents[2]
_FOUND = _ROOT / "build" / "fuzz"


def main() -> int:
    """The exit status: 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="one target by its name")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--input", type=Path, help="read one input, as a finding says")
    parser.add_argument("--worker", metavar="CORPUS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return _fuzz(options.only, options.worker, options.seconds)
    from tests.fuzz.all_targets import TARGETS, check

    if options.only not in ("", *TARGETS):
        parser.error(f"there is no target {options.only}; there are {', '.join(TARGETS)}")
    if options.input:
        print("accepted" if check(TARGETS[options.only], options.input.read_bytes()) else "refused, as documented")
        return 0
    results = [_run(name, options.seconds) for name in ([options.only] if options.only else TARGETS)]
    print(f"{sum(count for count, _ in results):,} inputs to {len(results)} decoders.")
    return int(not all(passed for _, passed in results))


def _run(name: str, seconds: int) -> tuple[int, bool]:
    """The number of inputs that the target was given, and whether there was no finding."""
    from tests.fuzz.all_targets import TARGETS

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(TARGETS[name].seeds):
            Path(corpus, str(number)).write_bytes(seed)
        command = [sys.executable, "-m", "tests.fuzz", "--only", name, "--seconds", str(seconds), "--worker", corpus]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, errors="replace")
    counted = re.findall(r"^#(\d+)\s|stat::number_of_executed_units:\s*(\d+)", done.stderr, re.MULTILINE)
    count = max((int(one or other) for one, other in counted), default=0)
    print(f"{name:16} {count:>9,} inputs", "" if done.returncode == 0 else "  A FINDING", flush=True)
    if done.returncode:
        _explain(name, done.stderr)
    return count, done.returncode == 0


def _explain(name: str, output: str) -> None:
    """Print what was found, and how to repeat it."""
    print("\n".join(output.splitlines()[-40:]))
    written = re.search(r"Test unit written to (\S+)", output)
    if written:
        file = Path(written[1])
        print(f"Again: .venv-fuzz/bin/python -m tests.fuzz --only {name} --input {file.relative_to(_ROOT)}")


def _fuzz(name: str, corpus: str, seconds: int) -> int:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["exchange_service", "tests.fuzz", "json", "email", "jwt", "base64"]):
        import structlog

        from tests.fuzz.all_targets import TARGETS, check

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    _FOUND.mkdir(parents=True, exist_ok=True)
    tested = TARGETS[name]
    limits = [f"-max_total_time={seconds}", f"-timeout={_TIMEOUT}", f"-rss_limit_mb={_MEMORY}", f"-max_len={_LARGEST}"]
    atheris.Setup(
        [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={_FOUND}/{name}-", corpus],
        lambda data: check(tested, data) and None,
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
