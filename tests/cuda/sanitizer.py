"""How NVIDIA's compute-sanitizer is called: which kernels it checks, and what it reports."""

CUBLAS_KERNELS = "cublas|cutlass|gemm|gemv|nvjet|splitK|xmma"
"""Found in the mangled names of cuBLAS's kernels on Volta to Blackwell, and in none of ours."""
SANITIZER_ERROR = 9
"""The exit code that says that something was found."""


def sanitizer_options(tool: str) -> list[str]:
    """The options for a tool, ``memcheck`` or ``racecheck``.

    cuBLAS's kernels are not checked, by ``--kernel-name-exclude`` (Compute Sanitizer's documentation, command-line
    options): nothing could be done about what is found in them. They are excluded, rather than ours chosen by
    ``--kernel-name``, since a pattern that no kernel matches would check nothing and say nothing.
    """
    options = ["--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)]
    options += ["--kernel-name-exclude", f"regex={CUBLAS_KERNELS}"]
    if tool == "memcheck":
        options += ["--report-api-errors", "no"]  # libraries ask for what a driver may lack, and do without
    return options
