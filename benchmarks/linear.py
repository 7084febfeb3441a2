"""Linear maps on a CPU: torch's linear against the same product as a convolution of width one.

    python benchmarks/linear.py [--threads 2]

torch sends an fp32 linear map to its BLAS; a convolution can be sent to oneDNN. Both compute the same sums; which is
faster depends on how well the BLAS knows the processor.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from timing import in_turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dim = arguments.dim
    w, b = torch.randn(dim, dim), torch.randn(dim)
    kernel = w[:, :, None, None]
    print("rows   linear  convolution  (GFLOP/s, median)  ratio")
    for rows in (64, 256, 1024, 4096, 16384):
        x = torch.randn(rows, dim)
        image = x.view(1, rows, 1, dim).permute(0, 3, 1, 2)
        runs = {
            "linear": lambda: F.linear(x, w, b),  # noqa: B023
            "convolution": lambda: torch.mkldnn_convolution(image, kernel, b, (0, 0), (1, 1), (1, 1), 1),  # noqa: B023
        }
        with torch.inference_mode():
            torch.testing.assert_close(
                runs["convolution"]().permute(0, 2, 3, 1).reshape(rows, dim), runs["linear"](), atol=2e-4, rtol=1e-4
            )
            seconds = in_turn(runs, arguments.rounds)
        rate = {name: 2 * rows * dim * dim / taken / 1e9 for name, taken in seconds.items()}
        print(
            f"{rows:6d} {rate['linear']:7.0f} {rate['convolution']:12.0f} {rate['convolution'] / rate['linear']:25.2f}"
        )


if __name__ == "__main__":
    main()
