"""Renders a chart as `helm template` does: folder and values as JSON in, rendered files as JSON out."""

import json
import sys

import helm_python as helm

folder, values = sys.argv[1:]
problems = helm.lint(folder)
if problems["errors"]:
    sys.exit("lint: " + "; ".join(problems["errors"]))
try:
    with helm.Chart.load(folder) as chart:
        files = chart.render(json.loads(values), name="flannel", namespace="kube-flannel")
except helm.HelmError as error:
    sys.exit(str(error))
print(json.dumps([text for _, text in sorted(files.items())]))
