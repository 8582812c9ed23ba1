"""Coverage-guided fuzzing of a reader: python tests/fuzz/fuzz.py READER [SECONDS] [CORPUS]

Needs `pip install 'qhdm[fuzz]'`. Readers are those of readers.py. What makes a reader do anything
but read or refuse, takes more than 10 s or more than 3 GiB is written to crash-*, timeout-* or
oom-* in the current folder; give that file to libFuzzer's -runs=1 to see it again. The corpus is
kept where a folder is given.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

SECONDS_PER_INPUT, MEGABYTES, LONGEST = 10, 3072, 70_000

with atheris.instrument_imports(
    include=["qhdm", "yaml", "openqasm3", "qiskit_qasm3_import", "zipfile"]
):
    from readers import READERS, Watch, refusal

    import qhdm.errors
    import qhdm.schema  # noqa: F401


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in READERS:
        sys.exit(f"fuzz.py: name a reader: {', '.join(READERS)}")
    seconds = sys.argv[2] if len(sys.argv) > 2 else "60"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "read"
        corpus = Path(sys.argv[3] if len(sys.argv) > 3 else Path(temporary) / "corpus")
        for path in (folder, corpus):
            path.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(READERS[name].seeds()):
            (corpus / f"seed{number}").write_bytes(seed)
        watch = Watch()
        with atheris.instrument_imports(
            include=["qhdm", "yaml", "openqasm3", "qiskit_qasm3_import", "zipfile"]
        ):
            for seed in READERS[name].seeds():  # what is imported in reading is instrumented
                refusal(name, seed, folder, None)
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={seconds}",
                f"-timeout={SECONDS_PER_INPUT}",
                f"-rss_limit_mb={MEGABYTES}",
                f"-max_len={LONGEST}",
                "-print_final_stats=1",
                str(corpus),
            ],
            lambda content: refusal(name, content, folder, watch) and None,
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
