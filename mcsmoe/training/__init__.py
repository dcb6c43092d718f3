"""Training: one loop, and the losses of each stage that uses it.

loop          batches, steps, best weights, and the end of a training that diverges
optimiser     AdamW with float32 masters, decay by role, learning rate
state         the state of a training on disk
writing       a training that goes on after an interruption, and its verified checkpoint
losses        cross-entropy and router losses over all processes
together      several processes train as one
start         the model and tokenizer that fine-tuning starts from
untrained     the full model taken as it is, without training
finetune      task loss, with router z-loss and balance loss
distillation  a merged or compressed student learns from the full model
dropping      drops experts one after another during training
"""
