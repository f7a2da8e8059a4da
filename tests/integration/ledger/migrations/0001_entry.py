"""Create the table."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """The app's first and last migration."""

    initial = True
    operations = (
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("account", models.CharField(max_length=40)),
                ("amount", models.IntegerField()),
                ("booked_at", models.DateTimeField()),
                ("details", models.JSONField(default=dict)),
            ],
        ),
        migrations.AddConstraint(
            model_name="entry",
            constraint=models.UniqueConstraint(fields=["account", "amount"], name="once"),
        ),
    )
