/* The part of cuBLAS that is used, on the host and by its definition: column-major, three loops, arguments checked. */
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

enum { SUCCESS, NOT_INITIALISED, ALLOCATION_FAILED = 3, INVALID_VALUE = 7, FLOAT32 = 0, FLOAT16 = 2, NORMAL = 0, TRANSPOSED = 1 };

struct handle {
  void *stream, *workspace;
  size_t workspace_bytes;
};

struct product {
  int transpose_a, transpose_b, m, n, k, lda, ldb, ldc;
  const void *a, *b;
  void *c;
  float alpha, beta;
  int type, type_c;
};

static struct handle *newest;
static int last_compute, recording, recorded, handles, driver_is_gone;
static struct product *products;

int cublasCreate_v2(struct handle **handle) {
  *handle = newest = calloc(1, sizeof **handle);
  handles++;
  return SUCCESS;
}

int cublasDestroy_v2(struct handle *handle) {
  if (driver_is_gone) pause(); /* for an answer of the driver */
  free(handle);
  handles--;
  return SUCCESS;
}

int cublasSetStream_v2(struct handle *handle, void *stream) {
  handle->stream = stream;
  handle->workspace = NULL; /* as the library does */
  return SUCCESS;
}

int cublasSetWorkspace_v2(struct handle *handle, void *workspace, size_t bytes) {
  handle->workspace = workspace;
  handle->workspace_bytes = bytes;
  return SUCCESS;
}

int cublasGetVersion_v2(struct handle *handle, int *version) {
  *version = 130000;
  return handle ? SUCCESS : NOT_INITIALISED;
}

static float at(const void *matrix, int type, int rows_apart, int transposed, int row, int column) {
  size_t place = transposed ? column + (size_t)row * rows_apart : row + (size_t)column * rows_apart;
  return type == FLOAT16 ? ((const _Float16 *)matrix)[place] : ((const float *)matrix)[place];
}

static void multiply(const struct product *p) {
  for (int column = 0; column < p->n; column++)
    for (int row = 0; row < p->m; row++) {
      double sum = 0;
      for (int i = 0; i < p->k; i++)
        sum += (double)at(p->a, p->type, p->lda, p->transpose_a, row, i) *
               at(p->b, p->type, p->ldb, p->transpose_b, i, column);
      double before = p->beta ? p->beta * at(p->c, p->type_c, p->ldc, NORMAL, row, column) : 0;
      size_t place = row + (size_t)column * p->ldc;
      if (p->type_c == FLOAT16) ((_Float16 *)p->c)[place] = (_Float16)(p->alpha * sum + before);
      else ((float *)p->c)[place] = (float)(p->alpha * sum + before);
    }
}

int cublasGemmEx(struct handle *handle, int transpose_a, int transpose_b, int m, int n, int k, const float *alpha,
                 const void *a, int type_a, int lda, const void *b, int type_b, int ldb, const float *beta, void *c,
                 int type_c, int ldc, int compute, int algorithm) {
  if (!handle || !handle->workspace) return NOT_INITIALISED;
  if (type_a != type_b || algorithm != -1) return INVALID_VALUE;
  if (type_a == FLOAT16 ? compute != 68 || (type_c && type_c != FLOAT16) : type_a || type_c) return INVALID_VALUE;
  if (compute != 68 && compute != 77) return INVALID_VALUE;
  if (transpose_a < NORMAL || transpose_a > TRANSPOSED || transpose_b < NORMAL || transpose_b > TRANSPOSED)
    return INVALID_VALUE;
  if (m < 1 || n < 1 || k < 1 || lda < (transpose_a ? k : m) || ldb < (transpose_b ? n : k) || ldc < m)
    return INVALID_VALUE;
  last_compute = compute;
  struct product product = {transpose_a, transpose_b, m, n, k, lda, ldb, ldc, a, b, c, *alpha, *beta, type_a, type_c};
  if (!recording) {
    multiply(&product);
    return SUCCESS;
  }
  products = realloc(products, (recorded + 1) * sizeof product); /* the factors are those of this moment */
  products[recorded++] = product;
  return SUCCESS;
}

/* Between the two, products are noted and not done: how many there are so far, and one of them done. */
void standin_record(int on) { recording = on; }
int standin_recorded(void) { return recorded; }
void standin_replay(int number) { multiply(products + number); }

int standin_compute(void) { return last_compute; }
void *standin_stream(void) { return newest->stream; }
size_t standin_workspace_bytes(void) { return newest->workspace_bytes; }
int standin_handles(void) { return handles; }
void standin_end_driver(void) { driver_is_gone = 1; }
