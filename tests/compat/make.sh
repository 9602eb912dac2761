# Made once, with the code of commit 6ba6a51: `PYTHONPATH=CHECKOUT bash make.sh PYTHON` in an empty folder.
set -euo pipefail
PYTHON=$1
tcl() { "$PYTHON" -m tcl_cli "$@"; }
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TCL_CACHE=$PWD/../cache

tcl scenes scenes:val:24 --out scenes
touch -d @1700000000 scenes/*  # a job knows its files by their times
cat > tiny.yaml <<'Y'
model:
  image_encoder: vit_tiny_patch16_224
  image_encoder_args: {patch_size: 16, embed_dim: 16, depth: 2, num_heads: 2}
  image_size: 32
  text_encoder_args: {hidden_size: 16, num_hidden_layers: 4, num_attention_heads: 2, intermediate_size: 32, max_position_embeddings: 40}
  pretrained: false
  fusion_layer: 2
  embed_dim: 16
  max_length: 16
  tokenizer: train
  vocab_size: 120
loss: {queue_size: 8, momentum: 0.9}
optim: {lr: 1.0e-3, warmup_steps: 2}
data: {batch_size: 4, workers: 1, augment: none}
train: {epochs: 2, checkpoint_every: 6, eval_every: 12, log_every: 1, keep: 1}
Y
cat > start.py <<'P'
"""Random weights that are large enough for vectors of different pictures to differ."""
import json
import torch
from tcl.config import ModelConfig
from tcl.data.captions import CaptionTokenizer
from tcl.models.tcl import TCL
from tcl.processor import Processor
from tcl.checkpoint import hash_model
import yaml
torch.manual_seed(1)
config = ModelConfig.model_validate(yaml.safe_load(open("tiny.yaml"))["model"])
captions = [c for line in open("scenes/captions.jsonl") for c in json.loads(line)["caption"]]
tokenizer = CaptionTokenizer.train(captions, config.vocab_size)
model = TCL.from_config(config, tokenizer.vocab_size)
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
model.processor = Processor(tokenizer, (config.image_size, config.image_size), config.max_length)
model.model_hash = hash_model(model)
model.save_pretrained("start")
P
"$PYTHON" start.py
tcl pretrain tiny.yaml --data scenes/captions.jsonl --out runs/tiny --init start
cat > dies.py <<'P'
"""`python dies.py MODULE CLASS METHOD CALLS ...`: the command line, killed at that call."""
import importlib, os, signal, sys
module, owner, method, calls, *arguments = sys.argv[1:]
owner, calls = getattr(importlib.import_module(module), owner), int(calls)
original = getattr(owner, method)
def dying(*arguments, **options):
    global calls
    calls -= 1
    if calls < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)
setattr(owner, method, dying)
sys.argv = ["tcl", *arguments]
from tcl_cli.main import main
main()
P
dies() { "$PYTHON" dies.py "$@" || true; }
dies tcl.train Training train_step 9 pretrain tiny.yaml --data scenes/captions.jsonl --out runs/killed --init start

tcl export --model runs/tiny --out bundle --precision fp32,int8 --calibrate scenes --pack --bound int8=0.5
model="--model bundle --batch-size 4 --workers 1 --backend onnx --precision fp32"
mkdir -p vectors/{npy,parquet,parts}
for dtype in float32 float16 int8 binary; do
  tcl embed scenes --out vectors/npy/$dtype.npy --dtype $dtype $model
  tcl embed scenes --out vectors/parquet/$dtype.parquet --dtype $dtype $model
  tcl embed scenes --out vectors/parts/$dtype/ --dtype $dtype --shard-rows 10 $model
done
tcl embed scenes --out vectors/parts/parquet/ --format parquet --shard-rows 10 $model
tcl embed scenes --out vectors/int8-graphs.npy ${model/fp32/int8}
tcl embed scenes --out vectors/tokens.npy --dtype float16 --keep-tokens $model
tcl embed scenes/captions.jsonl --kind text --out vectors/texts.npy $model
for kind in flat hnsw; do tcl index vectors/npy/float32.npy --kind $kind --out vectors/$kind.faiss; done
mkdir jobs
dies export.runtime OnnxEncoder encode_image 3 embed scenes --out jobs/file.npy $model
dies export.runtime OnnxEncoder encode_image 4 embed scenes --out jobs/parts/ --shard-rows 10 $model
dies export.runtime OnnxEncoder encode_image_tokens 3 embed scenes --out jobs/tokens.npy --keep-tokens --dtype int8 $model
tcl data pack scenes/captions.jsonl shards --size 32
rm -rf runs/*/report.html runs/*/tensorboard runs/tiny/checkpoints start.py dies.py
tcl embed scenes --out vectors/torch.npy --model runs/tiny --backend torch
tcl embed "shards/*.tar" --out vectors/shards.npy $model
mkdir answers
look() { name=$1; shift; tcl search "a small red circle" --model bundle --top 5 --json "$@" > answers/$name.json; }
for dtype in float32 float16 int8 binary; do
  look npy-$dtype --index vectors/npy/$dtype.npy
  look parquet-$dtype --index vectors/parquet/$dtype.parquet
  look parts-$dtype --index vectors/parts/$dtype
done
look parts-parquet --index vectors/parts/parquet
for kind in flat hnsw; do look $kind --index vectors/$kind.faiss; done
look rerank-images --index vectors/npy/float32.npy --rerank 8
look rerank-tokens --index vectors/tokens.npy --rerank 8
look torch --index vectors/npy/float32.npy --model runs/tiny
look texts --index vectors/texts.npy
tcl dedup vectors/npy/float32.npy --threshold 0.999 --json > answers/dedup.json
tcl eval retrieval --data scenes/captions.jsonl --model runs/tiny --json > answers/recall.json
tcl data check scenes/captions.jsonl --json > answers/check.json
