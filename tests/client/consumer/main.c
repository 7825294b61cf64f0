#include <stdio.h>
#include <weightcast/client.h>

int main(void) {
  weightcast_export* publication = NULL;
  if (weightcast_open("/", "nobody", 0, 1, NULL, &publication) == WEIGHTCAST_OK) return 1;
  printf("%s: %s\n", weightcast_version(), weightcast_last_error());
  return 0;
}
