"""The optional compiled modules: built where there is a compiler, left out with a warning where there is none."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension("trimq.message._fast", ["trimq/message/_fast.pyx"], optional=True),
        Extension("broker.replication._plain_sends", ["broker/replication/_plain_sends.pyx"], optional=True),
    ]
)
