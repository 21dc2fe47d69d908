"""The five stages of a run. In the order in which the data pass through them:

train_cam.py   images and image-level labels -> stage-1 model
label.py       stage-1 model and training images -> pseudo labels
train_seg.py   pseudo labels and training images -> stage-2 model
predict.py     stage-2 model and held-out images -> masks
evaluate.py    pseudo labels, masks and true masks -> metrics.json

pipeline.py runs them in this order; check.py and check_models.py look before at what can be known;
run.py says what a run is and what a stage is.
"""
