#!/bin/sh
# Builds llama-server for bench/peers.py out of the llama.cpp in llama-cpp-python's sdist, as its wheel is built: for
# this processor, with OpenMP. Only no AMX: GCC up to 12 miscompiles it, and no edgeguard uses it. Half an hour on one core.
#
#     bench/build_llama_server.sh FOLDER      # → FOLDER/bin/llama-server and its libraries; JOBS=2 for two cores
set -eu
version=0.3.36
folder=$1
mkdir -p "$folder"
"${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" -d "$folder"
tar -xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$folder"
flags=
if grep -q amx_tile /proc/cpuinfo 2> /dev/null; then flags='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16'; fi
cmake -S "$folder/llama_cpp_python-$version/vendor/llama.cpp" -B "$folder" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF "-DCMAKE_C_FLAGS=$flags" "-DCMAKE_CXX_FLAGS=$flags"
nice -n 19 cmake --build "$folder" -j"${JOBS:-1}" --target llama-server
