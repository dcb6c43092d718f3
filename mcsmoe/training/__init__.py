"""Training: one loop, and what each step of the method trains with it.

loop          batches, optimiser, schedule, the best weights; a trained model as a verified checkpoint
start         the model and tokenizer that fine-tuning starts from; untrained: a model taken as it is
finetune      the full model, its router kept healthy
distillation  a merged or compressed model learns from the full one
dropping      experts dropped one after another while a model trains
"""
