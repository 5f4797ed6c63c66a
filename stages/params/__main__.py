"""`python -m stages.params presets/coco.yaml` lays a preset over params.yaml (comments stay) and checks the result."""

import argparse
from pathlib import Path

from stages.entry import stage_main
from stages.params.pipeline import load_params
from stages.params.presets import apply_preset


def main() -> None:
    parser = argparse.ArgumentParser(description="Lay a preset over params.yaml, or check params.yaml alone.")
    parser.add_argument("preset", type=Path, nargs="?", help="a file of presets/")
    preset = parser.parse_args().preset
    if preset is not None:
        apply_preset(preset)
    load_params()
    print("params.yaml is valid" + (f", with {preset} laid over it" if preset else ""))


if __name__ == "__main__":
    stage_main(main, arguments=True)
