"""Writes docs/metrics.md: `python docs/metrics.py > docs/metrics.md`; a test keeps it current."""

from __future__ import annotations

from service.metrics import Metrics

HEAD = """# Metrics

<!-- Written by `python docs/metrics.py > docs/metrics.md`; a test keeps it current. -->

What `/metrics` shows, in base units. `route` is a template, never a path; `reason` is the `code` of a problem, unless
the row says otherwise. Beside these it shows Prometheus' usual ones of the process (`process_resident_memory_bytes`,
`process_open_fds` and others).

| metric | type | labels | what it counts or measures |
|---|---|---|---|
"""


def document() -> str:
    rows = []
    for collector in dict.fromkeys(Metrics().registry._names_to_collectors.values()):
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        for family in collector.collect():
            if family.name.startswith("tcm_"):
                name = family.name + ("_total" if family.type == "counter" else "")
                rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(document(), end="")
