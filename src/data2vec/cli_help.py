"""What `data2vec VERB --help` shows below the options: commands to copy, and what they make."""

GUIDE = """\
examples:
  data2vec demo                                          see it work on images, text and speech, in minutes
  data2vec recipes                                       what is there
  data2vec check photos/                                 what is there, what is broken or double
  data2vec pretrain vision/v2-tiny data.train=photos/    learn from a folder of pictures
  data2vec report runs/vision-v2-tiny                    how it goes: one page for a browser
  data2vec probe runs/vision-v2-tiny --data train/ --valid valid/
                                                         what the features are worth, by labelled pictures
  data2vec features runs/vision-v2-tiny photos/ --out photos.parquet --pool
                                                         a vector for each picture
  data2vec finetune vision/classify-tiny --model runs/vision-v2-tiny data.train=train/ data.valid=valid/
                                                         learn from labels
  data2vec evaluate runs/vision-classify-tiny            what it is worth

'data2vec VERB --help' tells more.
"""
PRETRAIN = """\
examples:
  data2vec pretrain vision/v2-tiny --out run data.train=photos/
  data2vec pretrain speech/v2-base --out run data.train=LibriSpeech/ train.precision=bf16 data.micro_batch_seconds=30
  data2vec pretrain text/v2-tiny --out run --resume data.train=books/ train.steps=4000
  data2vec pretrain mine.yaml
  torchrun --nproc_per_node 8 -m data2vec pretrain speech/v2-base --out run data.train=LibriSpeech/

what RUN holds:
  recipe.yaml        complete: running it again is the same run
  metrics.jsonl      a line for each logged step
  checkpoints/       everything to go on by --resume, to the last bit as if the run had never stopped
  model/             the encoder, for use: data2vec.load("RUN")
  report.html        how it went: curves, pictures, a verdict in words
  machine.json       on what it ran, and when
  bad_files.txt      what could not be read, where there was any

settings, each given as key=value over what the recipe says; in brackets what holds where it says nothing:
"""
FINETUNE = """\
examples:
  data2vec finetune speech/ctc-v1-base-10h --model audio_base_ls.pt --out asr data.train=labelled/ data.valid=held-out/
  data2vec finetune vision/classify-v2-base --model runs/photos --out cls data.train=train/ data.valid=valid/
  data2vec finetune text/glue-v1-rte --model nlp_base.pt --out rte data.train=train.tsv data.valid=dev.tsv
  data2vec finetune speech/ctc-tiny --out scratch data.train=train/ data.valid=valid/       from fresh weights, to compare
  data2vec finetune text/glue-v1-cola --model M --out grid --sweep train.lr=1e-5,2e-5 --seeds 5 data.train=…

RUN/model is the best model by its validation. Data is a folder of class folders, one with metadata.csv, tsv, parquet, or a
hub data set; objective.label names the column.

settings, each given as key=value over what the recipe says; those of pretrain (see its --help), and:
"""
EVALUATE = """\
examples:
  data2vec evaluate RUN                                    on the data.valid of its recipe
  data2vec evaluate MODEL data.valid=test/
  data2vec evaluate RUN objective.decode.lm=3gram.arpa objective.decode.beam=1500       by beam search
  data2vec evaluate RUN objective.decode.lm=3gram.arpa --tune 128       its weights searched on data.valid

settings, each given as key=value:
"""
TRANSCRIBE = """\
examples:
  data2vec transcribe asr/ call.flac
  data2vec transcribe asr/ *.wav --words --json out.jsonl
  data2vec transcribe asr/ lecture.mp3 --lm 3gram.arpa
"""
PROBE = """\
examples:
  data2vec probe RUN --data labelled/                      a folder for each class; a fifth is held out
  data2vec probe RUN --data train/ --valid valid/          or given apart
  data2vec probe RUN --data a/ --valid b/ --labels speaker a column of metadata.csv in each
  data2vec probe RUN --data train/ --valid valid/ probe.knn_k=20

settings, each given as key=value; in brackets what holds where the model's recipe says nothing:
"""
CONVERT = """\
examples:
  data2vec convert audio_base_ls.pt speech/ --to data2vec --license mit
  data2vec convert runs/photos photos-hf/ --to transformers
  data2vec convert owner/name mine.pt --to fairseq

forms:
  data2vec           a model folder of ours, with the teacher and all that pre-training can go on with
  transformers       a folder for from_pretrained: version 1 as Data2VecAudio, -Vision or -Text, version 2 with its own code
                     (trust_remote_code=True)
  fairseq            an official .pt, with the teacher

What has no place in the other form is told; all weights are read back and compared.
"""
FEATURES = """\
examples:
  data2vec features RUN a.flac b.flac --out ab.safetensors       what the encoder puts out, 50 vectors a second
  data2vec features RUN clips/ --out clips.npy --layers 8        of block 8; -1 is the last one, all is every block
  data2vec features RUN photos/ --out photos.parquet --pool      a vector for each input, labels beside it
  data2vec features RUN owner/name --split test --out test.npy --layers mean --pool

Finished parts are kept in FILE.parts/: stopped for whatever reason, the same command goes on after the last of them. Inputs
that cannot be read are left out, counted and named; their length is 0. How to read FILE: docs/features.md.
"""
CHECK = """\
examples:
  data2vec check clips/
  data2vec check books/ --tokenizer run/model --json found.json
  data2vec check owner/name --split validation --kind image
"""
EXPORT = """\
examples:
  data2vec export RUN --out speech.onnx
  data2vec export owner/name --out vision.pt2 --tolerance 1e-5
"""
