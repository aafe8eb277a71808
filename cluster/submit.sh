#!/usr/bin/env bash
# Trains on a running Ray cluster:  cluster/submit.sh stage=tokenizer data.path=/nfs/mine run.name=tok ...
#
# Sends this repository as the job's working directory (.gitignore respected) and runs
# `python -m pipelines.train ARGUMENTS` there. Exit code: 0 done, 1 failed, 2 refused before anything started.
#
# The job runs in a copy, so data.path, tokenizer_run and run.root must be absolute paths that every node
# sees. Relative ones that exist here are made absolute; run.root is $PWD/runs unless given.
#
#   RAY_API_SERVER_ADDRESS or RAY_ADDRESS   where the cluster listens; http://127.0.0.1:8265 if unset
#   RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH   the cluster's token; ~/.ray/auth_token if unset
#   HSTVG_ALLOW_REMOTE=1                    allow plain http to another machine (the token travels in clear)
#   HSTVG_PIPELINE                          train (default) or sweep
#   HSTVG_PYTHON                            interpreter on the cluster; python if unset
set -euo pipefail

refuse() {
  echo "error: $1" >&2
  exit 2
}

check_address() {
  [[ $1 =~ ^(https?)://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(:[0-9]+)?/?$ ]] \
    || refuse "'$1' is no job server address; it looks like http://127.0.0.1:8265"
  local scheme=${BASH_REMATCH[1]} host=${BASH_REMATCH[2]}
  [[ $scheme == https || ${HSTVG_ALLOW_REMOTE:-} == 1 ]] && return
  [[ $host =~ ^(localhost|127(\.[0-9]{1,3}){3}|\[::1\])$ ]] && return
  refuse "$1 is another machine and http is not encrypted; use 'ssh -L 8265:127.0.0.1:8265 $host', or set HSTVG_ALLOW_REMOTE=1"
}

check_token() {
  [[ -n ${RAY_AUTH_TOKEN:-} ]] && return
  local file=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
  [[ -s $file ]] || refuse "no token at $file; copy the cluster's there, or set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
}

# One override with its path made absolute, where it is one of the paths a job needs.
settle() {
  local key=${1%%=*} value=${1#*=}
  case $key in data.path | tokenizer_run | run.root) ;; *) printf '%s' "$1"; return ;; esac
  if [[ -z $value || $value == null || $value == /* || $value == *://* ]]; then
    printf '%s' "$1"
  elif [[ $key == run.root ]]; then
    printf '%s=%s' "$key" "$PWD/$value"
  elif [[ -e $value ]]; then
    printf '%s=%s' "$key" "$(cd "$(dirname "$value")" && pwd)/$(basename "$value")"
  else
    refuse "$key: no '$value' here, and the job runs elsewhere; give an absolute path that every node sees"
  fi
}

# A broken log stream says nothing about the job: its status is the truth.
outcome() {
  local status
  while status=$("$ray" job status --address "$address" "$id" 2>&1); do
    case $status in
      *"Job '$id' succeeded"*) return 0 ;;
      *"Job '$id' failed"* | *"Job '$id' was stopped"*) return 1 ;;
    esac
    sleep 10
  done
  echo "error: cannot ask $address about job $id; next: ray job status --address $address $id" >&2
  return 1
}

export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
address=${RAY_API_SERVER_ADDRESS:-${RAY_ADDRESS:-http://127.0.0.1:8265}}
pipeline=${HSTVG_PIPELINE:-train}
[[ $pipeline == train || $pipeline == sweep ]] || refuse "HSTVG_PIPELINE is '$pipeline'; it can be train or sweep"
check_address "$address"
check_token

ray=$root/.venv/bin/ray
[[ -x $ray ]] || ray=$(command -v ray) || refuse "no ray command; run make install"

overrides=()
name=$pipeline
run_root=run.root=$PWD/runs
for argument in "$@"; do
  settled=$(settle "$argument")
  case $settled in
    run.root=*) run_root=$settled; continue ;;
    run.name=*) name=${settled#run.name=} ;;
  esac
  overrides+=("$settled")
done
overrides+=("$run_root")
id="${name//[^A-Za-z0-9_-]/-}-$(date -u +%Y%m%d-%H%M%S)"

submitted=0
"$ray" job submit --address "$address" --submission-id "$id" --working-dir "$root" \
  --runtime-env "$root/cluster/runtime_env.yaml" \
  -- "${HSTVG_PYTHON:-python}" -m "pipelines.$pipeline" "${overrides[@]}" || submitted=$?
[[ $submitted == 0 ]] || outcome
