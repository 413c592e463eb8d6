"""Adapters for GAN repositories as their authors published them."""
