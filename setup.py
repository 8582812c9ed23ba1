"""Packaging of qhdm. Tested versions: constraints.txt; lower bounds: `make test-lowest`."""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
REPOSITORY = "https://github.com/qhdm/qhdm"
#: Folders of the repository that become data of `qhdm.shipped` in a wheel, and their files.
SHIPPED = {
    "configs": ["*.yaml", "*/*.yaml"],
    "circuits": ["*.qasm"],
    "jobs": ["*.yaml"],
    "pretrained": ["*/*", "*/checkpoints/*/*"],
}


def absolute(link: re.Match[str]) -> str:
    """A relative link of the README as an address that works on a package index."""
    kind = "raw" if link[1].endswith(".png") else "blob"
    return f"]({REPOSITORY}/{kind}/main/{link[1]})"


setup(
    name="qhdm",
    version=runpy.run_path(str(HERE / "qhdm" / "_version.py"))["__version__"],
    description="Quantum hybrid diffusion models for Earth Observation, native to Qiskit",
    long_description=re.sub(
        r"\]\((?!https?:|#)([^)]+)\)", absolute, (HERE / "README.md").read_text(encoding="utf-8")
    ),
    long_description_content_type="text/markdown",
    url=REPOSITORY,
    project_urls={
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Documentation": f"{REPOSITORY}/tree/main/docs",
        "Source": REPOSITORY,
        "Issues": f"{REPOSITORY}/issues",
    },
    keywords=[
        "diffusion models",
        "earth observation",
        "generative models",
        "hybrid quantum-classical",
        "qiskit",
        "quantum machine learning",
        "quanvolution",
        "remote sensing",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: GIS",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Topic :: Scientific/Engineering :: Physics",
        "Typing :: Typed",
    ],
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["qhdm", "qhdm.*"]),
        *(f"qhdm.shipped.{folder}" for folder in SHIPPED),
    ],
    package_dir={f"qhdm.shipped.{folder}": folder for folder in SHIPPED},
    package_data={
        "qhdm": ["py.typed"],
        "qhdm.data": ["bundled/*"],
        "qhdm.report": ["templates/*"],
        **{f"qhdm.shipped.{folder}": files for folder, files in SHIPPED.items()},
    },
    entry_points={"console_scripts": ["qhdm = qhdm.cli:main"]},
    install_requires=[
        "torch>=2.6",
        # TIFF and PNG of more than 8 bits, which Pillow reduces to 8; the first for NumPy 2.
        "imagecodecs>=2024.6",
        "tifffile>=2024.6",
        "msgpack>=1.0",
        # Before 2.6.1, the same circuit may be laid out differently from call to call.
        "qiskit>=2.6.1,<3",
        "qiskit-aer>=0.17,<0.19",
        # Fake devices, and the client-side Sampler, whose modules still move.
        "qiskit-ibm-runtime>=0.51,<0.60",
        # 0.9 moved EstimatorQNN to V2 primitives; minor releases before 1.0 break the API.
        "qiskit-machine-learning>=0.9,<0.10",
        # The parser of OpenQASM 3.
        "openqasm3[parser]>=1.0.1,<2",
        "jinja2>=3.1,<4",
        "matplotlib>=3.8.4",
        "numpy>=2",
        "pillow>=10.1",
        # Precision, recall, density and coverage, by their authors.
        "prdc>=0.2,<0.3",
        "psutil>=5.9",
        "pydantic>=2.13,<3",
        # Needed by Qiskit to draw circuits with matplotlib.
        "pylatexenc>=2.10",
        "pyyaml>=6",
        "requests>=2.32.4",
        # Earlier ones miss bridges, with which the exact engine finds small blocks.
        "rustworkx>=0.18",
        "safetensors>=0.4",
        "scipy>=1.14",
        "torchmetrics>=1.4,<2",
        "tqdm>=4.66",
    ],
    extras_require={
        "tensorboard": ["tensorboard>=2.14"],
        # GeoTIFF and JPEG 2000 with any bands; its wheels bring GDAL.
        "geo": ["rasterio>=1.4,<2"],
        # The networks of `qhdm evaluate --extractor inception|dinov2`.
        "extractors": ["torch-fidelity>=0.3,<0.5", "transformers>=5,<6"],
        "bench": [
            "deepquantum>=4",
            "jax>=0.6",
            "pennylane>=0.40",
            "pyqtorch>=1.7",
            "qulacs>=0.6",
            "tensorcircuit-ng>=1.10",
        ],
        # Comparisons on a cluster.
        "ray": ["ray>=2.30,<3"],
        "docs": [
            "ipykernel>=6.29",
            "myst-nb>=1.3,<2",
            "qiskit-sphinx-theme>=2,<3",
            "sphinx>=8,<10",
            "sphinx-copybutton>=0.5.2",
        ],
        "fuzz": ["atheris>=2.3"],
        "dev": [
            "diffusers>=0.33",
            "hypothesis>=6.100",
            "mypy>=1.10",
            "pennylane>=0.43",
            "pytest>=8.4",
            "pytest-xdist>=3.5",
            # Qiskit's own reader of OpenQASM 3, with which tests read what is exported.
            "qiskit-qasm3-import>=0.6,<0.7",
            "rasterio>=1.4,<2",
            "ray>=2.30,<3",
            "ruff>=0.6",
            # Builds the wheel that a test installs.
            "setuptools>=70.1",
            "tensorboard>=2.14",
            "transformers>=5,<6",
            "types-PyYAML",
            "types-requests",
            "types-tqdm",
            "websockets>=13",
        ],
    },
)
