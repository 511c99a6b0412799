"""Put what `tcm eval` has measured into docs/models.md, so that the card says what the command prints.

tcm eval PHOTOGRAPHS --plot docs/images/rd.png --json runs/eval.json
python docs/model_card.py runs/eval.json
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

CARD = Path(__file__).parent / "models.md"
BEGIN, END = "<!-- measured: docs/model_card.py -->", "<!-- end of measured -->"


def table(measured: dict) -> str:
    images = next(iter(measured["curves"].values()))[0]["images"]
    lines = [
        f"Means over {images} photographs, whole files, PSNR over RGB:",
        "",
        "| codec | setting | bits per pixel | PSNR (dB) | MS-SSIM | likelihoods against real bits |",
        "|---|---|---|---|---|---|",
    ]
    for name, points in measured["curves"].items():
        for p in points:
            estimate = f"{p['estimate_error']:+.2%}" if p["estimate_error"] is not None else ""
            similarity = f"{p['ms_ssim']:.4f}" if p["ms_ssim"] is not None else ""
            setting = re.sub(r"^(q\d+)@.*", r"\1", p["setting"])  # whose version says nothing of the models
            lines.append(
                f"| {name} | {setting} | {p['bits_per_pixel']:.4f} | {p['psnr']:.3f} | {similarity} | {estimate} |"
            )
    lines.append("")
    for test, against in measured["bd_rate"].items():
        rates = ", ".join(f"{rate:+.1f} % against {anchor}" for anchor, rate in against.items())
        lines.append(f"BD-rate (PSNR) of `{test}`: {rates}. Negative is better.")
    return "\n".join(lines)


def main(source: str) -> None:
    text = CARD.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    CARD.write_text(f"{head}{BEGIN}\n{table(json.loads(Path(source).read_text()))}\n{END}{tail}")


if __name__ == "__main__":
    main(*sys.argv[1:])
