"""What pyproject.toml cannot say: the top-level folder configs/ is shipped inside the package, as hrdc_hpc/configs.

So are the numbers of images of published data sets.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hrdc_hpc", "hrdc_hpc.*"]), "hrdc_hpc.configs"],
    package_dir={"hrdc_hpc.configs": "configs"},
    package_data={"hrdc_hpc.configs": ["*.yaml", "*/*.yaml", "*/*.md"], "hrdc_hpc.data.published": ["*.txt"]},
)
