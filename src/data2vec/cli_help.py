"""Examples and notes that `data2vec VERB --help` prints below the options."""

GUIDE = """\
examples:
  data2vec demo                                          pre-train on images, text and speech in minutes, without downloads
  data2vec recipes                                       list the shipped recipes
  data2vec check photos/                                 count examples, find corrupt and duplicate files
  data2vec plan vision/v2-tiny data.train=photos/        steps, memory, time and disk of a run, and what would be unwise
  data2vec pretrain vision/v2-tiny data.train=photos/    pre-train on a folder of images
  data2vec report runs/vision-v2-tiny                    build report.html: curves, figures, health verdict
  data2vec probe runs/vision-v2-tiny --data train/ --valid valid/
                                                         linear probe and kNN on frozen features
  data2vec features runs/vision-v2-tiny photos/ --out photos.parquet --pool
                                                         extract one feature vector per image
  data2vec finetune vision/classify-tiny --model runs/vision-v2-tiny data.train=train/ data.valid=valid/
                                                         fine-tune on labelled images
  data2vec evaluate runs/vision-classify-tiny            evaluate the fine-tuned model
  data2vec predict runs/vision-classify-tiny new/        predict the classes of new images

See 'data2vec VERB --help' for the options, settings and examples of a verb.
"""
PLAN = """\
examples:
  data2vec plan vision/v2-tiny data.train=photos/
  data2vec plan speech/v2-base --data LibriSpeech/ train.precision=bf16 --no-measure
  data2vec plan speech/ctc-tiny --model runs/speech data.train=transcribed/ data.valid=held-out/ --json plan.json

Nothing is written but files derived from the data, such as tokens of text, which the run uses too. Memory and time are
measured by two steps with one micro-batch. 'pretrain --dry-run' and 'finetune --dry-run' print the same.

Settings are given as key=value; 'data2vec pretrain --help' and 'data2vec finetune --help' list them.
"""
PRETRAIN = """\
examples:
  data2vec pretrain vision/v2-tiny --out run data.train=photos/
  data2vec pretrain speech/v2-base --out run data.train=LibriSpeech/ train.precision=bf16 data.micro_batch_seconds=30
  data2vec pretrain vision/v2-small --out run data.train=photos/ train.steps=auto data.micro_batch_size=auto
  data2vec pretrain mine.yaml
  data2vec pretrain --resume run                                                             resume, by the run's own recipe
  data2vec pretrain --resume run train.steps=4000                                            resume, and train longer
  torchrun --nproc_per_node 8 -m data2vec pretrain speech/v2-base --out run data.train=LibriSpeech/

the run folder:
  recipe.yaml        the complete recipe; running it again repeats the run
  metrics.jsonl      one JSON object per logged step
  log.txt            the messages of the run
  checkpoints/       full training state; --resume RUN continues bit-exactly
  model/             the encoder, for use: data2vec.load("RUN")
  report.html        curves, figures and the health verdict
  validation.json    of fine-tuning: confusions of classes, the worst and typical examples
  machine.json       hardware, versions and times of each start
  corrupt_files.txt  files that could not be read, if any

settings, given as key=value; they override the recipe (defaults in parentheses):
"""
ADAPT = """\
examples:
  data2vec adapt audio_base_ls.pt --data calls/ --out runs/calls
  data2vec adapt runs/photos --data x-rays/ --steps 2000 --dry-run
  data2vec adapt hf://owner/name --data x-rays/ --labels finding --keep photos-labelled/ --scratch
  data2vec adapt runs/photos@step-4000 --data more-photos/ data.valid=held-out/ train.lr=1e-4
  data2vec adapt --resume runs/calls                       finish it, and measure; 'pretrain --resume' finishes only
  torchrun --nproc_per_node 8 -m data2vec adapt nlp_base.pt --data books/

The recipe is the model's own, with a short schedule, a low learning rate and a slow teacher; its teacher and prediction head
are used if the file has them. The table at the end, also in RUN/adapt.json, has the loss on held-out data, the probes and the
drift from the start, before and after. docs/adapt.md has the details.

Settings are given as key=value; 'data2vec pretrain --help' lists them.
"""
FINETUNE = """\
examples:
  data2vec finetune speech/ctc-v1-base-10h --model audio_base_ls.pt --out asr data.train=labelled/ data.valid=held-out/
  data2vec finetune vision/classify-v2-base --model runs/photos --out cls data.train=train/ data.valid=valid/
  data2vec finetune text/glue-v1-rte --model nlp_base.pt --out rte data.train=train.tsv data.valid=dev.tsv
  data2vec finetune --resume asr
  data2vec finetune speech/ctc-tiny --out scratch data.train=train/ data.valid=valid/       from scratch, as a baseline
  data2vec finetune text/glue-v1-cola --model M --out grid --sweep train.lr=1e-5,2e-5 --seeds 5 data.train=…

Data is a folder with one folder per class, a folder with metadata.csv, a .tsv or .parquet file, or a hub dataset;
data.label names the label column, data.split and data.valid_split the splits. RUN/model is the checkpoint with the best
validation score.

settings, given as key=value: those of 'data2vec pretrain --help', and (defaults in parentheses):
"""
EVALUATE = """\
examples:
  data2vec evaluate RUN                                    on the validation data of its recipe
  data2vec evaluate MODEL data.valid=test/
  data2vec evaluate RUN objective.decode.lm=3gram.arpa objective.decode.beam=1500       beam search with a language model
  data2vec evaluate RUN objective.decode.lm=3gram.arpa --tune 128       tune the decoder weights on data.valid

Settings are given as key=value; 'data2vec finetune --help' lists them.
"""
PREDICT = """\
examples:
  data2vec predict cls/ a.jpg b.jpg                        a line per input: its name, class and probability
  data2vec predict cls/ photos/ --out photos.csv           a table: name, prediction, probability, error
  data2vec predict cls/ photos/ --top-k 5 --out photos.parquet
  data2vec predict events/ clips/ --threshold 0.3          of a multi-label model: all labels of at least this probability
  data2vec predict rte/ pairs.tsv --column premise --second hypothesis --out pairs.jsonl
  data2vec predict asr/ hf://owner/name --split test --out transcripts.csv
  data2vec predict watch/ new/ data.rate=50 --out watch.csv  recordings whose files do not say their rate

What is predicted is what the model was fine-tuned for: a class, several labels, a number or a transcript. With a language
model, or with the times of words, use 'data2vec transcribe'. Unreadable inputs are counted and named; in a table they have an
error. docs/predict.md describes the tables.
"""
TRANSCRIBE = """\
examples:
  data2vec transcribe asr/ call.flac
  data2vec transcribe asr/ *.wav --words --json out.jsonl
  data2vec transcribe asr/ lecture.mp3 --lm 3gram.arpa
"""
PROBE = """\
examples:
  data2vec probe RUN --data labelled/                      a folder per class; a fifth is held out for validation
  data2vec probe RUN --data train/ --valid valid/          with separate validation data
  data2vec probe RUN --data a/ --valid b/ --labels speaker  labels in a column of metadata.csv
  data2vec probe RUN --data train/ --valid valid/ probe.knn_k=20
  data2vec probe RUN --data train/ --valid test/ --shots 8 --draws 10
                                                           few-shot, as MTEB and MAEB measure
  data2vec probe RUN --data train/ --valid test/ --superb  SUPERB's head on a weighted sum of all layers
  data2vec probe RUN --data train/ --valid test/ --attentive
                                                           a learned query pools the positions of every layer
  data2vec probe RUN --tokens books/                       of a text model: predict masked tokens, without labels

settings, given as key=value; they override the recipe of the model (defaults in parentheses):
"""
ADAPTER = """\
examples:
  data2vec adapter mteb .                                  MTEB, and its audio benchmark MAEB
  data2vec adapter xares evaluation/                       X-ARES
  data2vec adapter hear evaluation/                        HEAR, and what follows its interface
  data2vec adapter s3prl evaluation/                       an upstream for a checkout of s3prl, for SUPERB

The first lines of the file say how the harness uses it.
"""
COMPARE = """\
examples:
  data2vec compare speech/v1-tiny speech/v2-tiny --out cmp --flops 1e12 --seeds 3 data.train=clips/ probe.data=labelled/
  data2vec compare mine.yaml --out cmp --dry-run           steps, FLOPs, jobs and time, before anything is trained
  data2vec compare mine.yaml --out cmp --processes 2       two jobs at a time
  data2vec compare mine.yaml --out cmp budget.flops=1e13   a larger budget
  data2vec compare mine.yaml --out cmp --only "data2vec 1"  one arm

a comparison file:
  data: {data.train: clips/}                   settings of the recipes of all arms
  budget: {flops: 1e12}                        of each pre-training run; or seconds, or steps
  seeds: [1, 2, 3]
  arms:
    data2vec 2: {recipe: speech/v2-tiny, grid: {train.lr: [1e-3, 2e-3]}}
    data2vec 1: {recipe: speech/v1-tiny, grid: {train.lr: [5e-4, 1e-3]}}
    untrained: {recipe: speech/v2-tiny, untrained: true}
  evaluations:
    digits: {kind: probe, train: train/, dev: dev/, test: {test: test/}, label: digit}

Grids are searched with a seed of their own, and settings chosen on dev data; test sets are only reported. DIR gets
results.json, table.md, compare.html, and a folder per run. The same command resumes an interrupted comparison.
docs/compare.md has the details.
"""
ABLATE = """\
examples:
  data2vec ablate --list
  data2vec ablate top-k --out topk recipe=speech/v1-tiny data.train=clips/ probe.data=labelled/ --flops 1e12 --seeds 3
  data2vec ablate target-norm --out norms recipe=vision/v2-tiny data.train=photos/ probe.data=labelled/ --flops 1e12 --dry-run

Everything else is as in 'data2vec compare --help'.
"""
CONVERT = """\
examples:
  data2vec convert audio_base_ls.pt speech/ --to data2vec --license mit
  data2vec convert runs/photos photos-hf/ --to transformers
  data2vec convert hf://owner/name mine.pt --to fairseq

formats:
  data2vec           a model folder, with the teacher and everything needed to continue pre-training
  transformers       a folder for from_pretrained: version 1 as Data2VecAudio, Data2VecVision or Data2VecText, version 2 with
                     its own code (trust_remote_code=True)
  fairseq            an official .pt checkpoint, with the teacher

Parts that the format cannot hold are listed. All weights are read back and compared.
"""
FEATURES = """\
examples:
  data2vec features RUN a.flac b.flac --out ab.safetensors       the encoder's output, 50 vectors per second
  data2vec features RUN clips/ --out clips.npy --layers 8        the output of block 8; -1 is the last block, all is every block
  data2vec features RUN photos/ --out photos.parquet --pool      one vector per input, with its label
  data2vec features RUN hf://owner/name --split test --out test.npy --layers mean --pool
  data2vec features RUN recordings/ --out r.npy data.missing_channels=pad

Finished shards are kept in FILE.parts/: after an interruption, the same command resumes after the last one. Unreadable inputs
are skipped, counted and named; their length is 0. docs/features.md describes the file formats.
"""
CHECK = """\
examples:
  data2vec check clips/
  data2vec check books/ --tokenizer run/model --json check.json
  data2vec check hf://owner/name --split validation --kind image
  data2vec check reviews.csv --column review --labels stars
  data2vec check recordings/ data.rate=50
  data2vec check readings.npy --modality sensors:Sensor --labels activity modality.window=16
"""
CHECK_MODALITY = """\
examples:
  data2vec check-modality my_package.sensors:Sensor --data readings.npy
  data2vec check-modality sensors:Sensor --data readings.npy modality.window=16 data.label=activity
  data2vec check-modality sensors:Sensor --data readings.npy --recipe sensor.yaml

A line is printed for each check: ok; failed, with what to fix; or skipped, with why it does not apply. Exit status 2 if one
fails. docs/modalities.md says what a modality is.
"""
VERIFY = """\
examples:
  data2vec verify nlp_base.pt
  data2vec verify audio_base_ls_960h.pt --input 1272-141231-0000.flac
  data2vec verify finetuned_base/mp_rank_00_model_states.pt --input 000000039769.jpg

Outputs are published for three models of version 1: text Base, speech Base fine-tuned on 960 h, and vision Base fine-tuned on
ImageNet-1K. docs/official-files.md says where the files are. Exit status 1 if an output differs.
"""
EXPORT = """\
examples:
  data2vec export RUN --out speech.onnx
  data2vec export hf://owner/name --out vision.pt2 --tolerance 1e-5
"""
