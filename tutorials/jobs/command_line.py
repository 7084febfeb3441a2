"""The same from a shell: each command below is one line of it."""

import shlex
import subprocess
import sys
from pathlib import Path

import scgpt_tools as sct

sct.datasets.load("pbmc3k_annotated").write_h5ad("cells.h5ad")

for line in (
    "scgpt-tools info",
    "scgpt-tools models",
    "scgpt-tools embed cells.h5ad --model scgpt-demo --output embedded.h5ad",
    "scgpt-tools embed cells.h5ad --model scgpt-demo --output embedded.h5ad --overwrite",
    "scgpt-tools tokenize cells.h5ad --model scgpt-demo --output binned.h5ad",
):
    print("$", line)
    name, *arguments = shlex.split(line)
    subprocess.run([Path(sys.executable).with_name(name), *arguments], check=True)
print([path.name for path in sorted(Path().glob("*.h5ad"))])
