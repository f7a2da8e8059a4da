DATABASES = {
    "default": {"ENGINE": "lambda_pg.django"},
    "direct": {"ENGINE": "lambda_pg.django", "OPTIONS": {"direct": True}},
}
INSTALLED_APPS = ["django.contrib.contenttypes"]
USE_TZ = True
