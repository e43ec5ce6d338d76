r"""The plan's layer analysis: its arguments in, its result file out.

    python scripts/layer_sensitivity_diagnosis.py --checkpoint DIR --test-data test.parquet \
        --output result.json

It is `noisescope layers` under the plan's names; stride and operators have the plan's values.
"""

import argparse
import sys
from typing import NoReturn

from noisescope.cli import run


class OneLineParser(argparse.ArgumentParser):
    """Answers a wrong word with one line, as the command line does."""

    def error(self, message: str) -> NoReturn:
        """Prints the line and leaves with status 2."""
        self.exit(2, f"Error: {message}. Try '{self.prog} --help'.\n")


def parse_arguments() -> argparse.Namespace:
    """Reads the plan's arguments."""
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="directory of the model (safetensors)")
    parser.add_argument("--tokenizer", help="directory of the tokenizer, if elsewhere")
    parser.add_argument("--test-data", required=True, help="questions: .parquet, .jsonl or .txt")
    parser.add_argument("--noise-scale", default="0.05", help="standard deviation of the error")
    parser.add_argument("--window-size", default="3", help="layers per window")
    parser.add_argument("--stride", help="layers per step; the window size if unset")
    parser.add_argument("--n-samples", default="50", help="how many questions, from the first on")
    parser.add_argument("--max-new-tokens", default="512", help="the most tokens of an answer")
    parser.add_argument("--output", required=True, help="result file to write; must not exist")
    return parser.parse_args()


def main() -> int:
    """Runs `noisescope layers` on the plan's arguments."""
    args = parse_arguments()
    options = {
        "--model": args.checkpoint,
        "--tokenizer": args.tokenizer,
        "--data": args.test_data,
        "--noise-scale": args.noise_scale,
        "--window": args.window_size,
        "--stride": args.stride,
        "--samples": args.n_samples,
        "--max-new-tokens": args.max_new_tokens,
        "--result": args.output,
    }
    # One word per option, so that a value such as "-1" is read as a value.
    words = [f"{name}={value}" for name, value in options.items() if value is not None]
    return run(["layers", *words])


if __name__ == "__main__":
    sys.exit(main())
