"""Layers."""
import torch


class RNN(torch.nn.RNN):
    pass


class TokenRNN(RNN):
    pass
