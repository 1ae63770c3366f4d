"""Adapters to hosts, the programs that own the training loop: HF Trainer, timm, Lightning.

Users import the module of their host, which must be installed.
"""
