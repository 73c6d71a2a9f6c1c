#!/bin/bash
# Train on a Cloud TPU slice, from a checkout of this project on a machine with gcloud. After the
# name and the zone of the slice, the arguments are those of `retinanet-jax train`:
#   docs/cluster/cloud_tpu.sh my-tpu us-west4-a --config=configs/tpu_640.py \
#       --data=gs://BUCKET/coco --workdir=gs://BUCKET/runs/tpu_640
set -eu
cd "$(dirname "$0")/../.."
tpu=$1 zone=$2
shift 2

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$1"
}

# uv (https://docs.astral.sh/uv) installs the Python that the hosts may lack.
gcloud compute tpus tpu-vm scp --recurse LICENSE README.md configs pyproject.toml retinanet_jax \
    setup.cfg "$tpu:" --zone="$zone" --worker=all
on_all_hosts "curl -LsSf https://astral.sh/uv/install.sh | sh &&
    ~/.local/bin/uv venv --allow-existing --python=3.12 .venv &&
    ~/.local/bin/uv pip install --python=.venv '.[tpu]'"

# If the connection ends, the run continues; train.log on each host has its output.
on_all_hosts "nohup .venv/bin/retinanet-jax train --distributed$(printf ' %q' "$@") \
    > train.log 2>&1 < /dev/null & tail --lines=+1 --follow --pid=\$! train.log; wait \$!"
