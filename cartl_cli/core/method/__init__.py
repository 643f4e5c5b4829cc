"""The paper and its rivals, top to bottom: who has read these files has read the method.

Eq. 4 and 10 are in ``adversarial_training``, Eq. 5 in ``pgd`` over ``norm_ball``, Eq. 11 in
``neft``, the batch-norm cases in ``batch_norm``; ``transfer_methods`` puts a transfer together.
``losses``, ``training_attacks`` and ``weight_perturbation`` hold what these are made of, and
``objective`` says what a training loop asks of them.
"""
