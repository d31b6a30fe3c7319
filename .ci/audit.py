"""Known vulnerabilities among the installed packages, or an honest word that nobody could be asked.

    .audit/bin/python .ci/audit.py .venv        # `make audit`

pip-audit by itself says that it found nothing, and exits with 0, where the index has no advisories to give: a
mirror, say. Exit status: 0 every package was looked up and none is vulnerable; 1 some are; 2 the database
could not be reached, or not for every package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SERVICES = ("pypi", "osv")
"""Databases, the second where the first does not know a package or cannot be reached."""
OURS = "u2a"


def main(environment: Path) -> int:
    """Asks one database after the other."""
    packages = next(environment.glob("lib/python3*/site-packages"))
    why = ""
    for service in SERVICES:
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--path",
            str(packages),
            "--vulnerability-service",
            service,
        ]
        done = subprocess.run(
            [*command, "--format", "json", "--progress-spinner", "off", "--timeout", "15"],
            capture_output=True,
            text=True,
            check=False,
        )
        status, why = verdict(done.stdout, done.stderr, service)
        if status < 2:
            break
    print(f"audit: {why}")
    return status


def verdict(printed: str, errors: str, service: str) -> tuple[int, str]:
    """Exit status and words for what pip-audit printed."""
    try:
        found = [each for each in json.loads(printed)["dependencies"] if each["name"] != OURS]
    except (ValueError, KeyError):
        last = (errors.strip().splitlines() or ["no reason given"])[-1]
        return 2, f"could not reach the advisories of {service} ({last[:200]}); nothing is known"
    vulnerable = [
        f"{each['name']} {each['version']}: {', '.join(one['id'] for one in each['vulns'])}"
        for each in found
        if each.get("vulns")
    ]
    unknown = [each["name"] for each in found if "skip_reason" in each]
    if vulnerable:
        return 1, "vulnerable: " + "; ".join(vulnerable)
    if unknown or not found:
        return 2, (
            f"could not reach the advisories of {service} for {len(unknown)} of {len(found)} packages "
            f"({', '.join(unknown[:5])}...); nothing is known of them"
        )
    return 0, f"{len(found)} packages looked up in {service}, no known vulnerability"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
